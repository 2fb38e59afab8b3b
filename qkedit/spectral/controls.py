"""Matched random controls: do *these* modes matter, or would any others have the same effect?

Both definitions are ours; the paper (arXiv 2606.20419) reports matched random-mode controls without defining them.

* *index-matched*, the primary control: k modes drawn uniformly from those the edit leaves (k+1 … rank), with the same
  ρ; in a channel they are modes of that channel. It needs `2k ≤ rank`. With fewer modes left the control would be a
  smaller edit and would not match, so that is an error.
* *norm-matched*: a random orthonormal frame in the column space of `W_qᵀ`, scaled by c so that `‖ΔM‖_F` equals
  that of the edit. A c of 2 to 6 pushes directions far past zero: c is recorded, and above 2 there is a warning.

Draws depend on (seed, layer, head) alone and are made on the CPU: the same on every device, in any order of work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkedit.spectral.product import QKProduct


class UnmatchedControlError(ValueError):
    """A head has fewer modes left than the edit takes; `head` is its position among the product's query heads."""

    def __init__(self, head: int, taken: int, left: int) -> None:
        self.head = head
        self.taken = taken
        self.left = left
        super().__init__(f"head {head} has only {left} modes besides the {taken} dominant ones")


@dataclass(frozen=True)
class ModeDraws:
    """The random numbers of one layer's heads."""

    seed: int
    layer: int
    heads: tuple[int, ...]

    def generator(self, position: int) -> np.random.Generator:
        """Return the generator of the head at `position` among `heads`."""
        return np.random.default_rng([self.seed, self.layer, self.heads[position]])


def index_matched(counts: Tensor, ranks: Tensor, draws: ModeDraws) -> tuple[Tensor, Tensor]:
    """Draw as many other modes of each head as it has dominant ones: return their counts `[H]` and numbers `[H, m]`.

    Raises:
        UnmatchedControlError: a head has fewer other modes than dominant ones.
    """
    wanted, available = counts.tolist(), (ranks - counts).tolist()
    chosen = torch.zeros(len(wanted), max(wanted), dtype=torch.long)
    for head, (taken, left) in enumerate(zip(wanted, available, strict=True)):
        if left < taken:
            raise UnmatchedControlError(head, taken, left)
        picks = draws.generator(head).choice(left, size=taken, replace=False) if taken else []
        chosen[head, :taken] = taken + torch.as_tensor(sorted(picks), dtype=torch.long)
    return torch.tensor(wanted), chosen


def norm_matched(product: QKProduct, counts: Tensor, target: Tensor, draws: ModeDraws) -> tuple[Tensor, Tensor]:
    """Draw a frame `Ĝ` `[H, d_h, m]` (in the coordinates of `L_q`) and the scale c `[H]` with `‖c Ĝᵀ core‖ = target`.

    The frame `U = Q_q Ĝ` is orthonormal and lies in the column space of `W_qᵀ`; head h uses `counts[h]` columns,
    the rest are zero. c is 0 for a head with nothing to match.
    """
    # L_q⁺ L_q is the identity for a head of full rank and otherwise keeps the frame inside the column space.
    inside = (product.query_factor_inverse @ product.query_factor).cpu()
    frame = torch.zeros(product.heads, product.head_size, int(counts.max()), dtype=torch.float64)
    for head, count in enumerate(counts.tolist()):
        normal = torch.from_numpy(draws.generator(head).standard_normal((product.head_size, count)))
        frame[head, :, :count] = torch.linalg.qr(inside[head] @ normal).Q
    frame = frame.to(product.core.device)
    size = torch.linalg.matrix_norm(frame.mT @ product.core)
    return frame, torch.where(size > 0, target.to(size) / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
