"""Measure the edits of a tensor's heads from its weights before and after, for edits without recorded modes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.manifest_file import HeadEdit
from qkedit.errors import CheckpointError
from qkedit.spectral.changes.combination import differs
from qkedit.spectral.changes.figures import energy_removed
from qkedit.steering.engine.layer_weights import LayerWeights, head_rows
from qkedit.steering.plan import PlannedLayer, make_plan
from qkedit.steering.steer_options import SteerOptions


def layers_by_tensor(checkpoint: Checkpoint) -> dict[str, PlannedLayer]:
    """Return every attention layer with all its heads, by the name of the tensor that holds its queries."""
    plan = make_plan(checkpoint, SteerOptions(layers="all", allow_text_only=True))
    return {planned.layer.query.tensor.name: planned for planned in plan.layers}


def layer_of(layers: dict[str, PlannedLayer], tensor: str) -> PlannedLayer:
    """Return the layer whose queries a tensor holds. Raises CheckpointError if it holds none."""
    if tensor not in layers:
        raise CheckpointError(
            f"tensor {tensor} holds no queries", where="base", remedy="give the model that the edit was made from"
        )
    return layers[tensor]


def rows_of(tensor: Tensor, planned: PlannedLayer) -> Tensor:
    """Return the planned heads of a query tensor, `[H, d_h, D]`."""
    return head_rows(tensor, planned.layer.query, planned.heads)


def measured_heads(
    checkpoint: Checkpoint, planned: PlannedLayer, before: Tensor, after: Tensor, heads: Collection[int] | None = None
) -> tuple[HeadEdit, ...]:
    """Return the edits of heads, without the suppressed modes.

    Args:
        checkpoint: the base, whose keys and norms are read.
        planned: the layer with all its heads.
        before: its query tensor in the base.
        after: its query tensor after the edit.
        heads: the heads to measure; by default those with any changed bit.

    Raises:
        CheckpointError: the weights after the edit hold NaN or infinity.
    """
    old, new = rows_of(before, planned), rows_of(after, planned)
    if not new.isfinite().all():
        raise CheckpointError(
            "the weights after the edit hold NaN or infinity",
            where=f"tensor {planned.layer.query.tensor.name}",
            remedy="leave the layer out, or choose a smaller strength",
        )
    if heads is None:
        heads = differs(old, new).flatten(1).any(1).nonzero().flatten().tolist()
    product = LayerWeights.read(checkpoint.files, planned).product(torch.device("cpu"))
    energy = energy_removed(old, new, product.key[product.key_head]).tolist()
    size = torch.linalg.matrix_norm(old.double())
    moved = torch.linalg.matrix_norm(new.double() - old.double()) / torch.where(size > 0, size, 1.0)
    return tuple(
        HeadEdit(
            head=head,
            key_head=head // planned.layer.group_size,
            suppressed=(),
            energy_removed=energy[head],
            gap=None,
            relative_change=float(moved[head]),
        )
        for head in sorted(heads)
    )
