"""Open the two sides of a comparison: checkpoints, or edits together with their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE, MANIFEST_FILE
from qkedit.checkpoint.manifest_file import TensorEdit
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import CheckpointError
from qkedit.steering.base import named_base, needed_base
from qkedit.steering.manifest import read_manifest_of
from qkedit.steering.plan import PlannedLayer
from qkedit.steering.sources.edit_source import EditSource, open_edit
from qkedit.steering.sources.stream import checked_base, planned_tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        name: the user's name for the model.
        checkpoint: the checkpoint that is read: the model itself, or the base of the edit.
        edit: the edit that is applied to the checkpoint's tensors; None for the unchanged checkpoint.
        layers: every attention layer by its index.
    """

    name: str
    checkpoint: Checkpoint
    edit: EditSource | None = None
    layers: Mapping[int, AttentionLayer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers. Raises QkeditError where the checkpoint is not understood or the edit does not fit it."""
        if self.edit is not None:
            planned_tensors([self.edit], self.checkpoint)
        stack = attention_stack(self.checkpoint, allow_text_only=True)
        object.__setattr__(self, "layers", {layer.index: layer for layer in stack.layers})

    def changes(self, layer: int) -> bool:
        """Return whether the edit changes a layer of the checkpoint."""
        return self._record(layer) is not None

    def tensors(self, layer: int) -> dict[str, Tensor]:
        """Read the tensors of a layer's product, by name.

        Raises:
            CheckpointError: bytes cannot be read, the edit is damaged, or the base is not the edit's base.
        """
        from qkedit.steering.engine.layer_weights import read_tensor

        found, record = self.layers[layer], self._record(layer)
        tensors = {}
        for entry in PlannedLayer(found, ()).needed_tensors:
            if self.edit is not None and record is not None and entry.name == record.name:
                before = checked_base(self.checkpoint, entry, [(self.edit, record)])
                tensors[entry.name] = self.edit.edited(record, before, found.query)
            else:
                tensors[entry.name] = read_tensor(self.checkpoint.files, entry)
        return tensors

    def _record(self, layer: int) -> TensorEdit | None:
        records = self.edit.manifest.tensors if self.edit is not None else ()
        return next((record for record in records if record.layer == layer), None)


def is_edit(place: str) -> bool:
    """Return whether a name is that of a directory that holds an edit alone: a delta or an adapter."""
    directory = Path(place).expanduser()
    return (directory / MANIFEST_FILE).is_file() and not (directory / CONFIG_FILE).exists()


def open_sides(first: str, second: str, base: str | None, revision: str | None) -> tuple[Side, Side, Side]:
    """Open two sides, of which at least one is an edit, and the base of both.

    Args:
        first: a directory of any layout, a hub id, an alias or `demo`.
        second: likewise.
        base: the model that the edits were made from; by default the other side if it is not edited, else the
            recorded base.
        revision: the branch, tag or commit of a base on the hub.

    Raises:
        UsageError: the base is not known.
        CheckpointError: a side is damaged, or the base is not the one that an edit was made from.
    """
    edits = {place: open_edit(place) for place in (first, second) if is_edit(place)}
    checkpoints = {place: open_checkpoint(resolve(place, None)) for place in (first, second) if place not in edits}
    checkpoint = _base(next(iter(edits.values())), checkpoints, base, revision)
    one, other = (
        Side(place, checkpoint, edits[place]) if place in edits else Side(place, checkpoints[place])
        for place in (first, second)
    )
    return one, other, Side(checkpoint.files.name, checkpoint)


def _base(
    edit: EditSource, checkpoints: Mapping[str, Checkpoint], base: str | None, revision: str | None
) -> Checkpoint:
    if base is not None:
        return named_base(edit.manifest, base, revision).open()
    for checkpoint in checkpoints.values():
        if read_manifest_of(checkpoint) is None:
            return checkpoint
    return needed_base(edit.manifest, None, None, edit.name).open()


def same_shape(one: AttentionLayer, other: AttentionLayer) -> bool:
    """Return whether two layers have the same number and size of heads, and the same width of the residual stream."""
    return _shape(one) == _shape(other)


def _shape(layer: AttentionLayer) -> tuple[int, int, int, int]:
    return layer.query_heads, layer.key_heads, layer.head_size, layer.query.tensor.shape[-1]


def refuse_other_shape(one: Side, other: Side, layer: int) -> None:
    """Raise CheckpointError if a layer has another shape in the base than in a model that was made from it."""
    if layer not in one.layers or not same_shape(one.layers[layer], other.layers[layer]):
        raise CheckpointError(
            f"layer {layer} has another shape than in {other.name}", where=one.name, remedy="name the base of both"
        )
