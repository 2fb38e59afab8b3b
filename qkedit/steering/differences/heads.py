"""Compare the query-key products of one layer in two models, per head, relative to a base if there is one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.spectral.analysis import principal_angles
from qkedit.spectral.changes.difference import HeadWeights, product_difference, product_norm
from qkedit.spectral.changes.figures import rounding_noise, row_spaces
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.plan import PlannedLayer

StoredLayer = tuple[AttentionLayer, Mapping[str, Tensor]]
"""A layer of one model, and the tensors of its product, by name."""

# Edits are calculated in float32, where a sum over a head's rows loses a few times as much as one rounding.
_ARITHMETIC = 8


@dataclass(frozen=True)
class HeadDifference:
    """The difference of one head's product `M = W_qᵀ W_k` in A and B; a figure is None where it has no meaning.

    Attributes:
        head: the query head.
        key_head: the key head that it reads.
        norm: `‖M_B − M_A‖` (Frobenius).
        relative: `norm` over `‖M‖` of the base, or of A if no base is known.
        rank: the rank of `M_B − M_A`: the number of singular values above the noise of rounding.
        rank_a: the dimension of the subspace of the base's queries that A changes beyond rounding; None without a
            base.
        rank_b: likewise for B.
        angles: the principal angles between these two subspaces in degrees, ascending: 0 for a direction that both
            change, 90 for one that only one of them changes; one angle per dimension of the smaller subspace.
    """

    head: int
    key_head: int
    norm: float | None
    relative: float | None
    rank: int | None
    rank_a: int | None = None
    rank_b: int | None = None
    angles: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerDifference:
    """The difference of one layer: the heads whose weights differ in any bit.

    Attributes:
        layer: the index of the layer.
        keys_differ: whether keys, or norms that are folded into them, differ as well.
        relative: `‖M_B − M_A‖` over `‖M‖` of the reference, over all heads of the layer; None if it has no meaning.
        heads: the differences of these heads.
    """

    layer: int
    keys_differ: bool
    relative: float | None
    heads: tuple[HeadDifference, ...]


def compared_layer(one: StoredLayer, other: StoredLayer, reference: StoredLayer | None) -> LayerDifference:
    """Compare the products of one layer, the query heads of one key head at a time.

    Args:
        one: the layer in A.
        other: the layer in B, with the same number of heads and the same head size.
        reference: the layer in the base, likewise; None without a base.
    """
    sides = [side for side in (one, other, reference) if side is not None]
    heads: list[HeadDifference] = []
    squares, change_squares, keys_differ = 0.0, 0.0, False
    layer = one[0]
    for key_head in range(layer.key_heads):
        chosen = tuple(range(key_head * layer.group_size, (key_head + 1) * layer.group_size))
        weights = [_weights(PlannedLayer(known, chosen), tensors) for known, tensors in sides]
        found, size, change = _heads(chosen, key_head, weights)
        heads += found
        squares, change_squares = squares + size, change_squares + change
        keys_differ |= not torch.equal(weights[0].keys, weights[1].keys)
    return LayerDifference(
        layer.index, keys_differ, _share(math.sqrt(change_squares), math.sqrt(squares)), tuple(heads)
    )


def _weights(planned: PlannedLayer, tensors: Mapping[str, Tensor]) -> HeadWeights:
    product = LayerWeights(planned, dict(tensors)).product(torch.device("cpu"))
    keys = product.key[product.key_head].double()
    # Gains of norms scale rows, and the rounding errors in them.
    stored = keys.to(tensors[planned.layer.key.tensor.name].dtype)
    return HeadWeights(product.query.double(), keys, _noise(product.query), _noise(stored))


def _noise(weights: Tensor) -> Tensor:
    """Return the noise of arithmetic and storage in an edit, as `rounding_noise` does, `[H]`."""
    noise, eps = rounding_noise(weights), torch.finfo(weights.dtype).eps
    single = torch.finfo(torch.float32).eps
    return noise if eps > single else noise * (_ARITHMETIC * single / eps)


def _heads(
    chosen: tuple[int, ...], key_head: int, weights: Sequence[HeadWeights]
) -> tuple[list[HeadDifference], float, float]:
    """Return the differences of one key head's query heads, and the squared norms of reference and change."""
    one, other, reference = weights[0], weights[1], weights[2] if len(weights) > 2 else None
    if reference is not None:
        one, other = (_told_from(side, reference) for side in (one, other))
    found = product_difference(one, other)
    by = one if reference is None else reference
    sizes = product_norm(by.query, by.keys)
    subspaces = [_subspaces(side, reference) for side in (one, other)] if reference is not None else None
    differs = (one.query != other.query).flatten(1).any(1) | (one.keys != other.keys).flatten(1).any(1)
    heads = []
    for place in differs.nonzero().flatten().tolist():
        norm = float(found.norm[place])
        spaces = [side[place] for side in subspaces] if subspaces else [None, None]
        heads.append(
            HeadDifference(
                head=chosen[place],
                key_head=key_head,
                norm=norm if math.isfinite(norm) else None,
                relative=_share(norm, float(sizes[place])),
                rank=found.ranks[place],
                rank_a=None if spaces[0] is None else spaces[0].shape[1],
                rank_b=None if spaces[1] is None else spaces[1].shape[1],
                angles=_angles(*spaces),
            )
        )
    return heads, float(sizes.square().sum()), float(torch.where(differs, found.norm, 0.0).square().sum())


def _told_from(side: HeadWeights, reference: HeadWeights) -> HeadWeights:
    """Return a side with zero rounding noise for the heads that equal the base's to the bit."""
    same_query = (side.query == reference.query).flatten(1).all(1)
    same_keys = (side.keys == reference.keys).flatten(1).all(1)
    return replace(
        side,
        query_noise=torch.where(same_query, 0.0, side.query_noise),
        key_noise=torch.where(same_keys, 0.0, side.key_noise),
    )


def _subspaces(side: HeadWeights, reference: HeadWeights) -> list[Tensor | None]:
    """Return the directions of each head's queries that a side changes, `[D, r]`; None where unknown."""
    change = side.query - reference.query
    known = change.flatten(1).isfinite().all(1)
    spaces = iter(row_spaces(change[known], side.query_noise[known]))
    return [next(spaces) if is_known else None for is_known in known.tolist()]


def _angles(one: Tensor | None, other: Tensor | None) -> tuple[float, ...]:
    if one is None or other is None or not min(one.shape[1], other.shape[1]):
        return ()
    return tuple(math.degrees(angle) for angle in principal_angles(one, other).tolist())


def _share(part: float, whole: float) -> float | None:
    share = part / whole if whole > 0 else math.nan
    return share if math.isfinite(share) else None
