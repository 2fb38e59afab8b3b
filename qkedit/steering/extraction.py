"""Extract an edit from two checkpoints, a base and its edited version; any tool may have edited it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.manifest_file import Derivation, Manifest
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import UsageError
from qkedit.steering.diff import diff
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.pace import pace_for
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.manifest import derived_manifest, read_manifest_of
from qkedit.steering.outputs.delta import DeltaWriter
from qkedit.steering.outputs.writer import Written
from qkedit.steering.plan import PlannedLayer
from qkedit.steering.run import SteerReport, write_output
from qkedit.steering.steer_options import OutputOptions
from qkedit.stopwatch import Stopwatch

_NAMED = 3


def extract(
    base: str, edited: str, *, output: OutputOptions, only_queries: bool = False, progress: Progress | None = None
) -> SteerReport:
    """Write the difference of two checkpoints as a delta of the first one.

    Args:
        base: the model before: a directory, a hub id, an alias or `demo`.
        edited: the model after, likewise. If it is an output of qkedit, its manifest is taken over where it matches.
        output: where and how to write; the layout must be delta.
        only_queries: leave out differences outside query projections.
        progress: called as the work advances.

    Raises:
        UsageError: other things than query projections differ and `only_queries` is not set, or no queries do.
        CheckpointError: a model is not a sound checkpoint, or the edited weights hold NaN or infinity.
    """
    from qkedit.steering.sources.head_edits import layers_by_tensor

    if output.layout != "delta":
        raise UsageError(
            "an edit is extracted as a delta", where="layout", remedy="choose delta, and `qkedit apply` it"
        )
    before, after = (open_checkpoint(resolve(model, None)) for model in (base, edited))
    layers = layers_by_tensor(before)
    found = diff(base, edited)[0]
    changed = {item.name for item in found if item.what == "changed" and item.name in layers}
    others = [item.name for item in found if item.name not in changed]
    if others and not only_queries:
        raise _more_than_queries(edited, others)
    if not changed:
        raise UsageError("no query projection differs from the base's", where=edited, remedy="name an edited model")
    planned = {name: before.tensors[name] for name in layers if name in changed}
    largest = max(entry.nbytes for entry in planned.values())
    stopwatch, progress = Stopwatch(), progress or Silent()
    chosen = {name: layers[name] for name in planned}
    return write_output(
        before,
        DeltaWriter(planned, stopwatch, progress),
        _edits(before, after, chosen, only_queries=only_queries),
        pace_for(largest, largest).edited,
        lambda written: _manifest(before, after, written),
        output,
        (before.files, after.files),
        stopwatch,
        progress,
    )


def _edits(
    before: Checkpoint, after: Checkpoint, layers: Mapping[str, PlannedLayer], *, only_queries: bool
) -> Iterator[EditedTensor]:
    from qkedit.spectral.changes.combination import differs
    from qkedit.steering.engine.layer_weights import read_tensor, stored_bytes
    from qkedit.steering.sources.head_edits import measured_heads

    for name, planned in layers.items():
        old, new = read_tensor(before.files, before.tensors[name]), read_tensor(after.files, after.tensors[name])
        layer, result = planned.layer, old.clone()
        for start in layer.query.starts:
            rows = slice(start, start + layer.query.head_size)
            result[rows] = new[rows]
        if not only_queries and bool(differs(result, new).any()):
            raise _more_than_queries(after.files.name, [f"{name}, outside its queries"])
        heads = measured_heads(before, planned, old, result)
        if not heads:
            raise UsageError(
                "differs only outside its queries", where=f"tensor {name}", remedy="this is not an edit of queries"
            )
        digest = hashlib.sha256(stored_bytes(old)).hexdigest()
        record = EditRecord(layer.index, layer.form, layer.norm_kind, before.tensors[name], digest, heads)
        yield EditedTensor(name, result, record)


def _manifest(before: Checkpoint, after: Checkpoint, written: Written) -> Manifest:
    """Return the edited checkpoint's manifest, if it is an output of qkedit with the same tensors; else a new one."""
    own = read_manifest_of(after)
    made = derived_manifest(before, Derivation.EXTRACTED, written)
    if own is not None and _hashes(own) == _hashes(made):
        return replace(own, generated={}, adapter=None)
    return made


def _hashes(manifest: Manifest) -> set[tuple[str, str, str]]:
    return {(tensor.name, tensor.sha256_before, tensor.sha256_after) for tensor in manifest.tensors}


def _more_than_queries(edited: str, names: list[str]) -> UsageError:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return UsageError(
        f"differs from the base in more than query projections: {', '.join(names[:_NAMED])}{more}",
        where=edited,
        remedy="pass --only-queries to leave that out",
    )
