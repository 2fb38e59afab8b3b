"""Find the factors of an edit in stored weights, which hold the edit after it was rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.manifest_file import EditedChannel, TensorEdit
from qkedit.errors import CheckpointError
from qkedit.spectral.changes.combination import rounded
from qkedit.spectral.changes.low_rank import nearest
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import FactoredEdit
from qkedit.steering.engine.layer_weights import head_rows


def factors_between(
    before: Tensor, after: Tensor, record: EditRecord, query: HeadRows, channel: EditedChannel
) -> FactoredEdit:
    """Return the factors of the difference of a query tensor, of the ranks that the edit had.

    Rounding to the storage dtype spreads over all directions of a head. Its part outside the edit's directions is the
    error; within them, the factors are exactly the difference, as far as float64 can tell.

    Args:
        before, after: the tensor without the edit and with it.
        record: the heads that were edited, with the number of modes of each.
        query: the rows of the query heads.
        channel: of the edit; an antisymmetric mode is a plane, and changes a head by two directions.
    """
    directions = 2 if channel is EditedChannel.ANTISYMMETRIC else 1
    edited = [head for head in record.heads if head.suppressed]
    numbers = tuple(head.head for head in edited)
    if not edited or max(numbers) >= len(query.starts):
        raise _not_of_the_base("no heads with modes, or heads that the base does not have")
    changes = head_rows(after, query, numbers).double() - head_rows(before, query, numbers).double()
    factors = {
        head.head: nearest(change, directions * len(head.suppressed))
        for head, change in zip(edited, changes, strict=True)
    }
    missed = [change - factors[head].dense() for head, change in zip(numbers, changes, strict=True)]
    size = torch.linalg.vector_norm(changes)
    return FactoredEdit(factors, min(1.0, float(torch.linalg.vector_norm(torch.stack(missed)) / size)))


def merged(
    before: Tensor, left: Tensor, right: Tensor, query: HeadRows, record: EditRecord | TensorEdit
) -> tuple[Tensor, list[float]]:
    """Add `left @ right` to the edited heads of a query tensor, in float64 with one rounding.

    Args:
        before: the tensor without the edit.
        left, right: LoRA's B and A. B has the rows of the tensor, or the rows of the query heads one after another.
        query: the rows of the query heads.
        record: the heads that were edited.

    Returns:
        The tensor with the edit, and the change of each head of the record: `‖W_q' − W_q‖ / ‖W_q‖`.

    Raises:
        CheckpointError: the factors or the heads do not match the tensor.
    """
    after, moved, size = before.clone(), [], query.head_size
    if max(head.head for head in record.heads) >= len(query.starts):
        raise _not_of_the_base("heads that the base does not have")
    fitting = (len(before), len(query.starts) * size)
    if len(left) not in fitting or left.shape[1] != right.shape[0] or right.shape[1] != before.shape[1]:
        raise _not_of_the_base("factors that do not fit the shape of the query weights")
    # A model class that splits a fused tensor has the queries alone; see `QueryModule`.
    own_starts = query.starts if len(left) == len(before) else range(0, len(query.starts) * size, size)
    edited = torch.zeros(len(left), dtype=torch.bool)
    for head in record.heads:
        if head.suppressed:
            edited[own_starts[head.head] : own_starts[head.head] + size] = True
    # An inference engine adds the whole product, whatever the manifest says.
    if bool(left[~edited].any()):
        raise CheckpointError(
            "the adapter changes rows outside the heads that the manifest lists",
            where=f"tensor {record.tensor.name if isinstance(record, EditRecord) else record.name}",
            remedy="make or fetch the adapter again",
        )
    for head in record.heads:
        start, own_start = query.starts[head.head], own_starts[head.head]
        rows = slice(start, start + size)
        old = before[rows].double()
        if head.suppressed:  # others keep their bytes, negative zeros included
            change = left[own_start : own_start + size].double() @ right.double()
            after[rows] = rounded(old + change, before.dtype)
        norm = torch.linalg.vector_norm(old)
        moved.append(float(torch.linalg.vector_norm(after[rows].double() - old) / norm) if norm > 0 else 0.0)
    return after, moved


def _not_of_the_base(what: str) -> CheckpointError:
    return CheckpointError(f"the edit names {what}", remedy="make or fetch the edit again")
