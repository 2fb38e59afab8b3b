"""Write the edit that a full directory or a delta holds in another form: as an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import UsageError
from qkedit.steering.base import chosen_base
from qkedit.steering.engine.pace import pace_for
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.manifest import is_adapter, read_manifest
from qkedit.steering.outputs.chosen import writer_for
from qkedit.steering.run import SteerReport, write_output
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.stored_edits import factored_edits, layers_of
from qkedit.stopwatch import Stopwatch


def export(
    edit: str | Path,
    *,
    output: OutputOptions,
    base: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> SteerReport:
    """Write an edit as an adapter.

    The factors are found in the difference between the edited tensors and the base, which were rounded to the storage
    dtype; the manifest records for each layer how much of the change was lost.

    Args:
        edit: a full directory or a delta that `steer` wrote.
        output: where and how to write; the layout must be `lora`.
        base: the model that was edited; by default the one on the hub that the manifest records.
        revision: the branch, tag or commit of a hub base; by default the one in the manifest.
        progress: called as the work advances.

    Raises:
        UsageError: no base is known, or the edit is an adapter already.
        UnsupportedForm: no adapter can hold the edit.
        CheckpointError: the base is not the model that was edited, or the edit is damaged.
    """
    if output.layout != "lora":
        raise UsageError("an edit is exported as an adapter", where="layout", remedy="choose lora")
    files = LocalFiles(Path(edit))
    manifest = read_manifest(files.directory)
    if is_adapter(files, manifest):
        raise UsageError("is an adapter already", where=str(edit), remedy="name a full directory or a delta")
    if manifest.options is None:
        raise UsageError(
            "its modes are not recorded, since it was made from other edits",
            where=str(edit),
            remedy="export each edit by itself",
        )
    found = chosen_base(manifest, base, revision)
    if found is None:
        raise UsageError(
            "the base is a directory, whose path the manifest does not record",
            where="--base",
            remedy="name the model that was edited",
        )
    checkpoint = found.open()
    layers = list(layers_of(manifest, checkpoint).values())
    largest = max(layer.query.tensor.nbytes for layer in layers)
    stopwatch, progress = Stopwatch(), progress or Silent()
    return write_output(
        checkpoint,
        writer_for(checkpoint, layers, output, stopwatch, progress),
        factored_edits(files, manifest, checkpoint, stopwatch),
        pace_for(largest, largest).edited,
        lambda written: replace(manifest, adapter=written.adapter, generated={}),
        output,
        (checkpoint.files, files),
        stopwatch,
        progress,
    )
