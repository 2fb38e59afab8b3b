"""The mathematics of DSCR on one grid of image tokens: weights from depth and place, and the weighted mix.

For image tokens i, j of one grid with depth d and place s = (row, column), and exponents α, β (DSCR, OpenReview
FHTt9ipAra):

    f_d = exp(−(d_i − d_j)² / 2σ_d²)        f_s = exp(−‖s_i − s_j‖² / 2σ_s²)        w̃_ij = f_d^α + f_s^β
    w_ij = w̃_ij [i ≠ j] / Σ_k w̃_kj [k ≠ j]      k̂_j = Σ_i w_ij k_i

The paper gives neither the unit of d nor that of s. Here s counts cells, and d is in standard deviations of the
grid's depths; see `standardized`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The lower bound of a kernel's values. It is negligible, and subnormal numbers would take a processor
# fifty times as long.
LEAST = 1e-34


@dataclass(frozen=True)
class Kernel:
    """The decay of the weights with depth and with distance; by default the published numbers.

    Attributes:
        depth_sigma: σ_d, in the unit of depth.
        place_sigma: σ_s, in cells.
        depth_exponent: α.
        place_exponent: β.
    """

    depth_sigma: float = 0.6
    place_sigma: float = 0.6
    depth_exponent: float = 0.6
    place_exponent: float = 0.8


def standardized(depth: Tensor) -> Tensor:
    """Return z-scores of a grid's depths `[N]`, with mean 0 and population deviation 1; flat depth gives 0.

    Depth models return values in their own units. In [0, 1] the published σ_d hardly distinguishes near from far, and
    the mix becomes the average of the image.
    """
    centred = depth.float() - depth.float().mean()
    deviation = centred.square().mean().sqrt()
    # A flat map is flat up to the rounding of its own values.
    flat = deviation <= 1e-6 * depth.float().abs().max()
    return torch.zeros_like(centred) if flat else centred / deviation


def mixing_weights(depth: Tensor, places: Tensor, kernel: Kernel) -> Tensor:
    """Return w of one grid, float32 `[N, N]`: column j holds the share of every token i in token j.

    Args:
        depth: the depth of each token, `[N]`.
        places: the row and column of each token, `[N, 2]`.
        kernel: the decay of the weights.

    In a grid of one token, the token keeps itself with weight 1.
    """
    if len(depth) == 1:
        return torch.ones(1, 1, device=depth.device)
    by_depth = _falling(depth.float()[:, None], kernel.depth_sigma, kernel.depth_exponent)
    by_place = _falling(places.float(), kernel.place_sigma, kernel.place_exponent)
    return _shares((by_depth + by_place).fill_diagonal_(0))


def without_lost(weights: Tensor, kept: Tensor) -> Tensor:
    """Return the weights among the tokens that are left, normalised again so that each column sums to 1.

    Args:
        weights: w of a whole grid, `[N, N]`.
        kept: the tokens that are left, `[M]` indices.
    """
    return _shares(weights[kept][:, kept])


def _falling(points: Tensor, sigma: float, exponent: float) -> Tensor:
    """Return `exp(−exponent ‖p_i − p_j‖² / 2σ²)` of points `[N, axes]`, at least `LEAST`."""
    # The default way, by products of the points, would lose the digits of small distances.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square_().mul_(-exponent / (2 * sigma**2)).clamp_(min=math.log(LEAST)).exp_()


def _shares(weights: Tensor) -> Tensor:
    """Scale each column to sum to 1; a token too far from all others for any weight keeps itself."""
    totals = weights.sum(0)
    alone = totals <= len(weights) * 2 * LEAST
    weights.diagonal().masked_fill_(alone, 1)
    return weights / torch.where(alone, 1, totals)


def mixed(weights: Tensor, states: Tensor) -> Tensor:
    """Return `Σ_i w_ij x_i` for every token j, float32, in one product for all heads of all grids.

    Args:
        weights: w of each grid, `[G, N, N]`.
        states: keys or values of each token, `[G, N, H, d]`.
    """
    return (weights.mT @ states.float().flatten(2)).reshape(states.shape)


def effective_tokens(weights: Tensor) -> Tensor:
    """Return the effective number of tokens in a mix: the mean over j of `1 / Σ_i w_ij²`, for w `[…, N, N]`."""
    return weights.square().sum(-2).reciprocal().mean(-1)


def variance(states: Tensor) -> Tensor:
    """Return the variance of the tokens of a grid: `Σ ‖x_j − mean‖²` over tokens and heads.

    Args:
        states: `[…, N, H, d]`.
    """
    states = states.float()
    return (states - states.mean(-3, keepdim=True)).square().sum((-3, -2, -1))
