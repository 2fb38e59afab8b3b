"""Write existing edits as a full checkpoint, as one merged delta, or with another strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.manifest_file import LARGEST_STRENGTH, Derivation, Manifest
from qkedit.errors import UsageError
from qkedit.steering.base import needed_base
from qkedit.steering.engine.pace import pace_for
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.manifest import derived_manifest
from qkedit.steering.outputs.chosen import full_writer
from qkedit.steering.outputs.delta import DeltaWriter
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.outputs.writer import Writer, Written
from qkedit.steering.run import SteerReport, write_output
from qkedit.steering.sources.adapter_edit import AdapterEdit
from qkedit.steering.sources.edit_source import EditSource, open_edits
from qkedit.steering.sources.stream import in_strength, planned_tensors, stacked
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.stored_edits import merged_edits
from qkedit.stopwatch import Stopwatch

# The product of two strengths in float64 may exceed the limit by this much through rounding.
_ROUNDING = 1 + 1e-12


def apply_edits(
    edits: Sequence[str | Path],
    *,
    base: str,
    output: OutputOptions,
    revision: str | None = None,
    keep_plugins: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Write the full directory of a base with edits applied.

    The result of one delta is byte-equal to steering directly. An adapter is added to the base in float64 and
    rounded once.
    A number that one edit alone changes has that edit's value, bit for bit. Where several edits change a number, their
    changes are added.

    Args:
        edits: directories that qkedit wrote, in any layout.
        base: the model that was edited: a directory, a hub id, an alias or `demo`.
        output: where and how to write; the layout must be full.
        revision: the branch, tag or commit of a hub base; by default the one in the first edit's manifest.
        keep_plugins: copy the base's `qkedit-plugins.json` to the output.
        progress: called as the work advances.

    Raises:
        UsageError: another layout than full is asked for, or an edit is named twice.
        CheckpointError: the base is not the model that an edit was made from, or an edit is damaged.
    """
    if output.layout != "full":
        raise UsageError("an edit is applied to make a full checkpoint", where="layout", remedy="choose full")
    sources = open_edits(edits)
    checkpoint = _base_of(sources, base, revision)
    return _written(sources, checkpoint.with_plugins() if keep_plugins else checkpoint, 1, output, progress)


def merge_edits(
    edits: Sequence[str | Path],
    *,
    output: OutputOptions,
    base: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> SteerReport:
    """Write one delta that combines several edits of one base, as `apply_edits` does.

    Args:
        edits: directories that qkedit wrote, in any layout.
        output: where and how to write; the layout must be delta.
        base: the model they were made from; by default the recorded one.
        revision: the branch, tag or commit of a hub base.
        progress: called as the work advances.

    Raises:
        UsageError: fewer than two edits are named, one is named twice, or the base is not known.
        CheckpointError: the same as for `apply_edits`.
    """
    if output.layout != "delta":
        raise UsageError("edits are merged into a delta", where="layout", remedy="choose delta, or `qkedit apply`")
    if len(edits) < 2:
        raise UsageError("a single edit cannot be merged", where="edits", remedy="name at least two")
    sources = open_edits(edits)
    return _written(sources, _base_of(sources, base, revision), 1, output, progress)


def interpolate_edit(
    edit: str | Path,
    strength: float,
    *,
    output: OutputOptions,
    base: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> SteerReport:
    """Write an edit with another strength: `W + strength (W' − W)`, rounded once.

    Args:
        edit: a directory that qkedit wrote, in any layout.
        strength: in (0, 2]; 1 gives the output of `apply_edits`, to the byte. For an edit that has another strength
            already, the product of both is at most 2.
        output: where and how to write.
        base: the model it was made from; by default the recorded one.
        revision: the branch, tag or commit of a hub base.
        progress: called as the work advances.

    Raises:
        UsageError: an adapter is asked for, the strength is out of range, or the base is not known.
        CheckpointError: the same as for `apply_edits`.
        QkeditError: the storage dtype cannot represent so small a change.
    """
    if not 0 < strength <= LARGEST_STRENGTH:
        raise UsageError(
            f"{strength:g} is not above 0 and at most {LARGEST_STRENGTH:g}",
            where="--strength",
            remedy="give a number such as 0.5; strength 0 would be the base itself",
        )
    if output.layout == "lora":
        raise UsageError(
            "an adapter cannot hold an interpolated edit", where="--layout", remedy="choose full or delta"
        )
    sources = open_edits([edit])
    earlier = _strength_of(sources[0].manifest.as_dict())
    if strength * earlier > LARGEST_STRENGTH * _ROUNDING:
        raise UsageError(
            f"{edit} has strength {earlier:g} already, and {strength:g} times that is above {LARGEST_STRENGTH:g}",
            where="--strength",
            remedy=f"give at most {LARGEST_STRENGTH / earlier:g}",
        )
    return _written(sources, _base_of(sources, base, revision), strength, output, progress)


def _strength_of(manifest: Mapping[str, Any]) -> float:
    """Return the total strength of an edit; of one that was made of edits with several strengths, the largest."""
    own, parts = manifest.get("strength"), manifest.get("made_of")
    known = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list | tuple) else []
    return (own if isinstance(own, int | float) else 1) * max(map(_strength_of, known), default=1)


def _written(
    sources: Sequence[EditSource],
    checkpoint: Checkpoint,
    strength: float,
    output: OutputOptions,
    progress: Progress | None,
) -> SteerReport:
    planned = planned_tensors(sources, checkpoint)
    largest = max(entry.nbytes for entry in planned.values())
    stopwatch, progress = Stopwatch(), progress or Silent()
    writer: Writer = DeltaWriter(planned, stopwatch, progress)
    if output.layout == "full":
        writer = full_writer(checkpoint, planned, output, stopwatch, progress)
    if strength == 1 and len(sources) == 1 and isinstance(sources[0], AdapterEdit):
        edits = merged_edits(sources[0].files, sources[0].manifest, checkpoint, stopwatch)  # measured below
    elif strength == 1:
        edits = stacked(sources, checkpoint, stopwatch)
    else:
        edits = in_strength(sources[0], checkpoint, strength, stopwatch)

    def manifest_of(written: Written) -> Manifest:
        manifests = [source.manifest for source in sources]
        if strength != 1:
            return derived_manifest(checkpoint, Derivation.SCALED, written, manifests, strength)
        if len(sources) > 1:
            return derived_manifest(checkpoint, Derivation.STACKED, written, manifests)
        files = tuple(files_of_output(checkpoint))
        return replace(manifests[0], tensors=written.tensor_edits(), files=files, generated={})

    return write_output(
        checkpoint,
        writer,
        edits,
        pace_for(largest, largest).edited,
        manifest_of,
        output,
        (checkpoint.files, *(source.files for source in sources)),
        stopwatch,
        progress,
    )


def _base_of(sources: Sequence[EditSource], base: str | None, revision: str | None) -> Checkpoint:
    """Open the common base of edits: the one that the user names, else the one that the first edit records."""
    return needed_base(sources[0].manifest, base, revision, sources[0].name).open()
