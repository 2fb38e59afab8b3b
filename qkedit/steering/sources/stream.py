"""Turn edits from sources into the stream that outputs consume: one, several combined, or one at another strength."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import HeadEdit, TensorEdit
from qkedit.errors import CheckpointError, QkeditError, UnsupportedForm
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.manifest import records_of
from qkedit.steering.plan import PlannedLayer
from qkedit.steering.sources.edit_source import EditSource
from qkedit.steering.sources.fitting import known_query_layers, query_layers, refuse_misfits
from qkedit.stopwatch import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

# A strength is refused if rounding loses more than this share of the change.
_LARGEST_LOSS = 0.5
# A ratio this large only says that two edits cancel out.
_LARGEST_SHARE = 1e6


def planned_tensors(sources: Sequence[EditSource], checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """Return the tensors of the base that sources change, by name, in the order of the layers.

    Raises:
        CheckpointError: the base lacks a tensor of that name, dtype and shape, or it does not hold such queries.
    """
    planned = _planned(sources, checkpoint)
    layers = known_query_layers(checkpoint)
    if layers is not None:
        for source in sources:
            refuse_misfits(source.manifest, layers, checkpoint.files.name)
    return planned


def _planned(sources: Sequence[EditSource], checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    records = [record for source in sources for record in records_of(source.manifest, checkpoint.tensors)]
    return {record.tensor.name: record.tensor for record in sorted(records, key=lambda record: record.layer)}


def refuse_other_base(sources: Sequence[EditSource], checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if a checkpoint is not the model that the edits were made from."""
    for name, entry in planned_tensors(sources, checkpoint).items():
        touching = [
            (source, tensor) for source in sources for tensor in source.manifest.tensors if tensor.name == name
        ]
        checked_base(checkpoint, entry, touching)


def stacked(
    sources: Sequence[EditSource], checkpoint: Checkpoint, stopwatch: Stopwatch | None = None
) -> Iterator[EditedTensor]:
    """Yield the tensors of a common base with all sources applied, each once; see `qkedit.spectral.changes`.

    `planned_tensors` has checked the manifests against the base.

    Raises:
        CheckpointError: the base is not the one that an edit was made from, or an edit is damaged.
    """
    stopwatch = stopwatch or Stopwatch()
    with stopwatch("start-up"):
        from qkedit.spectral.changes.combination import combined
        from qkedit.steering.sources.head_edits import layer_of, layers_by_tensor

    queries, layers = _queries(checkpoint), cache(lambda: layers_by_tensor(checkpoint))
    for name, entry in _planned(sources, checkpoint).items():
        touching = [
            (source, tensor) for source in sources for tensor in source.manifest.tensors if tensor.name == name
        ]
        with stopwatch("reading"):
            before = checked_base(checkpoint, entry, touching)
            edits = [source.edited(tensor, before, queries.get(name)) for source, tensor in touching]
        with stopwatch("mathematics"):
            after = combined(before, edits)
            records = [tensor for _, tensor in touching]
            heads = (
                records[0].heads
                if len(records) == 1
                else _heads_together(checkpoint, layer_of(layers(), name), before, edits, after, records)
            )
        yield EditedTensor(name, after, _record(records[0], entry, heads))


def in_strength(
    source: EditSource, checkpoint: Checkpoint, strength: float, stopwatch: Stopwatch | None = None
) -> Iterator[EditedTensor]:
    """Yield the tensors of a base with one source applied at a strength other than 1.

    Raises:
        CheckpointError: the same as for `stacked`.
        QkeditError: the storage dtype cannot represent so small a change.
    """
    stopwatch = stopwatch or Stopwatch()
    with stopwatch("start-up"):
        from qkedit.spectral.changes.combination import scaled
        from qkedit.steering.sources.head_edits import layer_of, layers_by_tensor, measured_heads

    queries, layers = _queries(checkpoint), cache(lambda: layers_by_tensor(checkpoint))
    known = {tensor.name: tensor for tensor in source.manifest.tensors}
    for name, entry in _planned([source], checkpoint).items():
        with stopwatch("reading"):
            before = checked_base(checkpoint, entry, [(source, known[name])])
            edited = source.edited(known[name], before, queries.get(name))
        with stopwatch("mathematics"):
            after = scaled(before, edited, strength)
            _refuse_lost(name, before, edited, after, strength)
            chosen = [head.head for head in known[name].heads]
            heads = measured_heads(checkpoint, layer_of(layers(), name), before, after, chosen)
        yield EditedTensor(name, after, _record(known[name], entry, heads))


def _queries(checkpoint: Checkpoint) -> dict[str, HeadRows]:
    """Return the rows of the query heads in each tensor of a checkpoint; empty if its architecture is unknown."""
    try:
        return {name: layer.query for name, layer in query_layers(checkpoint).items()}
    except UnsupportedForm:
        return {}


def _record(tensor: TensorEdit, entry: TensorEntry, heads: tuple[HeadEdit, ...]) -> EditRecord:
    return EditRecord(tensor.layer, tensor.form, tensor.norm, entry, tensor.sha256_before, heads)


def checked_base(
    checkpoint: Checkpoint, entry: TensorEntry, touching: Sequence[tuple[EditSource, TensorEdit]]
) -> Tensor:
    """Read a tensor of the base, and compare it with the recorded original of each edit."""
    from qkedit.steering.engine.layer_weights import read_tensor, stored_bytes

    before = read_tensor(checkpoint.files, entry)
    found = hashlib.sha256(stored_bytes(before)).hexdigest()
    for source, tensor in touching:
        if tensor.sha256_before != found:
            raise CheckpointError(
                f"tensor {entry.name} is not the one that was edited",
                where=checkpoint.files.name,
                remedy=f"give the model that {source.name} was made from, at the same revision",
            )
    return before


def _heads_together(
    checkpoint: Checkpoint,
    planned: PlannedLayer,
    before: Tensor,
    edits: Sequence[Tensor],
    after: Tensor,
    records: Sequence[TensorEdit],
) -> tuple[HeadEdit, ...]:
    """Return the edits of a tensor's heads; for a head that only one edit changed, the recorded one."""
    import torch

    from qkedit.spectral.changes.combination import interaction
    from qkedit.steering.sources.head_edits import measured_heads, rows_of

    by_head: dict[int, list[HeadEdit]] = {}
    for record in records:
        for head in record.heads:
            by_head.setdefault(head.head, []).append(head)
    shared = sorted(head for head, recorded in by_head.items() if len(recorded) > 1)
    heads = {head: recorded[0] for head, recorded in by_head.items() if len(recorded) == 1}
    if shared:
        old, *new = (rows_of(tensor, planned)[shared] for tensor in (before, *edits))
        pairs = [interaction(old, one, other) for one, other in itertools.combinations(new, 2)]
        overlap, order = (
            torch.stack([getattr(pair, field) for pair in pairs]).amax(0).clamp(max=_LARGEST_SHARE).tolist()
            for field in ("overlap", "order")
        )
        measured = measured_heads(checkpoint, planned, before, after, shared)
        for edit, common, disorder in zip(measured, overlap, order, strict=True):
            heads[edit.head] = replace(edit, overlap=common, order=disorder)
    return tuple(heads[head] for head in sorted(heads))


def _refuse_lost(name: str, before: Tensor, edited: Tensor, after: Tensor, strength: float) -> None:
    import torch

    wanted = strength * (edited.double() - before.double())
    lost = torch.linalg.vector_norm(after.double() - before.double() - wanted)
    # The norm of a change far below the dtype's smallest number is 0.
    if torch.equal(after, before) or lost > _LARGEST_LOSS * torch.linalg.vector_norm(wanted):
        raise QkeditError(
            f"at strength {strength:g} the change is too small for {str(before.dtype).removeprefix('torch.')}: "
            "most of it would be lost in rounding",
            where=f"tensor {name}",
            remedy="choose a larger strength",
        )
