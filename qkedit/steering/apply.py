"""Make the full checkpoint from a delta or an adapter and its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qkedit.checkpoint.io.copying import LinkMode
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import UsageError
from qkedit.steering.base import open_base
from qkedit.steering.engine.pace import pace_for
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.stopwatch import Stopwatch
from qkedit.steering.manifest import read_manifest, records_of
from qkedit.steering.options import OutputOptions
from qkedit.steering.outputs.full import FullWriter
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.outputs.writer import Written
from qkedit.steering.run import SteerReport, write_output
from qkedit.steering.stored_edits import stored_edits


def apply_delta(
    delta: str | Path,
    *,
    base: str,
    output: OutputOptions,
    revision: str | None = None,
    keep_plugins: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Make the full directory from a delta or an adapter and the model it was made from.

    From a delta it is byte-equal to steering directly. An adapter is added to the base in float64 and rounded once.

    Args:
        delta: a directory written with the layout `delta` or `lora`.
        base: the model that was steered: a directory, a hub id, an alias or `demo`.
        output: where and how to write; the layout must be full.
        revision: of a hub base; the one in its manifest by default.
        keep_plugins: take along the plug-ins that are attached to the base.
        progress: told how far the run is.

    Raises:
        UsageError: the output would be a delta or an adapter again.
        CheckpointError: the base is not the model that it was made from, or it is damaged.
    """
    if output.layout != "full":
        raise UsageError("an edit is applied to make a full directory", where="layout", remedy="take full")
    files = LocalFiles(Path(delta))
    manifest = read_manifest(files.directory)
    checkpoint = open_base(manifest, base, revision)
    if keep_plugins:
        checkpoint = checkpoint.with_plugins()
    records = records_of(manifest, checkpoint.tensors)
    planned = {record.tensor.name: record.tensor for record in records}
    largest = max(entry.nbytes for entry in planned.values())
    stopwatch, progress = Stopwatch(), progress or Silent()

    def manifest_of(written: Written) -> Manifest:
        return replace(manifest, tensors=written.tensor_edits(), files=tuple(files_of_output(checkpoint)))

    return write_output(
        checkpoint,
        FullWriter(checkpoint, planned, LinkMode(output.link), stopwatch, progress),
        stored_edits(files, manifest, checkpoint, stopwatch),
        pace_for(largest, largest).edited,
        manifest_of,
        output,
        (checkpoint.files, files),
        stopwatch,
        progress,
    )
