"""Combine several edits of one weight, or scale one edit to another strength.

An edit of the full channel multiplies a head's queries from the right, `W_i = W (I − A_i)` with `A_i = (1−ρ) U Uᵀ`.
Two edits made from the same W can be combined in two ways, with `Δ_i = W_i − W`:

    sum           W + Δ_1 + Δ_2           =  W (I − A_1 − A_2)
    composition   W (I − A_1)(I − A_2)    =  W + Δ_1 + Δ_2 + W A_1 A_2

The two are equal where the edits act on orthogonal directions. Elsewhere composition depends on the order and needs
the rows of W to be independent. It has no meaning for an edit that does not have this form: an edit of a channel, a
LoRA, another tool's edit. So edits are summed here, as adapters are, and `interaction` measures how far composition
differs: `W A_1 A_2 = Δ_1 W⁺ Δ_2`, since the rows of `Δ_2` are combinations of those of W. This term is what both
edits remove and the sum removes twice: the sum of an edit with itself reverses the sign of its modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Float64 copies are made of this many numbers at a time.
_NUMBERS_AT_ONCE = 1 << 20
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def combined(base: Tensor, edits: Sequence[Tensor]) -> Tensor:
    """Return `base + Σ (edit − base)`, rounded once; a number that only one edit changed is bit for bit that edit's.

    The result does not depend on the order of the edits.

    Args:
        base: `[rows, …]`.
        edits: at least one, of the same shape and dtype, each made from `base`.
    """
    if len(edits) == 1:
        return edits[0]
    result = torch.empty_like(base)
    for piece in _pieces(base):
        result[piece] = _combined(base[piece], [edit[piece] for edit in edits])
    return result


def _combined(base: Tensor, edits: Sequence[Tensor]) -> Tensor:
    changed = torch.stack([differs(base, edit) for edit in edits])
    wide = base.double()
    # Sorted, so that rounding does not depend on the order of the edits.
    changes = torch.stack([edit.double() - wide for edit in edits]).sort(dim=0).values
    total = changes[0]
    for change in changes[1:]:
        total = total + change
    count = changed.sum(dim=0)
    result = torch.where(count > 1, rounded(wide + total, base.dtype), base)
    for edit, its_own in zip(edits, changed, strict=True):
        result = torch.where(its_own & (count == 1), edit, result)
    return result


def scaled(base: Tensor, edited: Tensor, strength: float) -> Tensor:
    """Return `base + strength (edited − base)`, rounded once; numbers that the edit did not change keep their bits.

    Args:
        base: `[rows, …]`.
        edited: of the same shape and dtype.
        strength: 1 gives `edited` itself, 0 gives `base`, 2 twice the change.
    """
    if strength == 1:
        return edited
    result = torch.empty_like(base)
    for piece in _pieces(base):
        wide = base[piece].double()
        moved = rounded(wide + strength * (edited[piece].double() - wide), base.dtype)
        result[piece] = torch.where(differs(base[piece], edited[piece]), moved, base[piece])
    return result


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Return a mask of the numbers whose bits differ: 0 and −0 do, equal NaNs do not. Same dtype and shape."""
    integers = _INTEGERS[one.element_size()]
    return one.contiguous().view(integers) != other.contiguous().view(integers)


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float64 numbers to a narrower dtype, rounding once: to the nearest, ties to even.

    PyTorch converts to 16 bits by way of float32, and so rounds twice. Rounding to odd first avoids new ties.
    """
    if dtype.itemsize > 2:
        return numbers.to(dtype)
    single = numbers.float()
    bits = single.view(torch.int32)
    wide = single.double()
    inexact_and_even = (wide != numbers) & ((bits & 1) == 0) & single.isfinite()
    towards = torch.where(wide.abs() < numbers.abs(), 1, -1).to(torch.int32)
    return torch.where(inexact_and_even, bits + towards, bits).view(torch.float32).to(dtype)


@dataclass(frozen=True)
class Interaction:
    """The difference of the sum of two edits and their composition, as shares of `‖Δ_1 + Δ_2‖`, per head `[H]`.

    Attributes:
        overlap: `‖Δ_1 W⁺ Δ_2‖`, or with the edits exchanged, whichever is larger: the part that is removed twice.
        order: `‖Δ_1 W⁺ Δ_2 − Δ_2 W⁺ Δ_1‖`: the difference of the two compositions.
    """

    overlap: Tensor
    order: Tensor


def interaction(query: Tensor, one: Tensor, other: Tensor) -> Interaction:
    """Return the deviation of two edits of the same heads from acting on orthogonal directions.

    Args:
        query: the heads before the edits, `[H, d_h, D]`.
        one: the heads after one edit.
        other: the heads after the other edit, which was made from `query` as well.
    """
    before = query.double()
    first, second = one.double() - before, other.double() - before
    inverse = _pseudoinverse(before @ before.mT)
    forward = (first @ before.mT) @ inverse @ second
    backward = (second @ before.mT) @ inverse @ first
    size = torch.linalg.matrix_norm(first + second)
    largest = torch.maximum(*(torch.linalg.matrix_norm(part) for part in (forward, backward)))
    return Interaction(_share(largest, size), _share(torch.linalg.matrix_norm(forward - backward), size))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return `part / whole`: infinite where the edits cancel out, 0 where neither changes anything."""
    return torch.where(part > 0, part / whole, 0.0)


def _pseudoinverse(gram: Tensor) -> Tensor:
    """Return `G⁺` of symmetric matrices; eigenvalues below `d_h · eps · λ_max` count as zero."""
    values, vectors = torch.linalg.eigh(gram)
    cut = gram.shape[-1] * torch.finfo(gram.dtype).eps * values[..., -1:]
    return (vectors * torch.where(values > cut, 1 / values, 0.0).unsqueeze(-2)) @ vectors.mT


def _pieces(tensor: Tensor) -> list[slice]:
    rows = max(1, _NUMBERS_AT_ONCE // max(1, tensor[0].numel()))
    return [slice(start, start + rows) for start in range(0, len(tensor), rows)]
