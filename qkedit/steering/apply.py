"""Make the full checkpoint from a delta and its base, byte-equal to steering directly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import CheckpointError, UsageError
from qkedit.steering.base import open_base
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.pace import pace_for
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.reading import delta_entries, read_bytes
from qkedit.steering.engine.stopwatch import Stopwatch
from qkedit.steering.manifest import DELTA_FILE, read_manifest, records_of
from qkedit.steering.options import OutputOptions
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.run import SteerReport, write_output


def apply_delta(
    delta: str | Path,
    *,
    base: str,
    output: OutputOptions,
    revision: str | None = None,
    keep_plugins: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Make the full directory from a delta and the model it was made from, byte-equal to steering directly.

    Args:
        delta: a directory written with the delta layout.
        base: the model that was steered: a directory, a hub id, an alias or `demo`.
        output: where and how to write; the layout must be full.
        revision: of a hub base; the one in the delta's manifest by default.
        keep_plugins: take along the plug-ins that are attached to the base.
        progress: told how far the run is.

    Raises:
        UsageError: the output would be a delta again.
        CheckpointError: the base is not the model that the delta was made from, or the delta is damaged.
    """
    if output.layout != "full":
        raise UsageError("a delta is applied to make a full directory", where="layout", remedy="take full")
    files = LocalFiles(Path(delta))
    manifest = read_manifest(files.directory)
    checkpoint = open_base(manifest, base, revision)
    if keep_plugins:
        checkpoint = checkpoint.with_plugins()
    records = records_of(manifest, checkpoint.tensors)
    largest = max(record.tensor.nbytes for record in records)
    stopwatch = Stopwatch()
    return write_output(
        checkpoint,
        {record.tensor.name: record.tensor for record in records},
        _delta_weights(files, checkpoint.files, records, manifest, stopwatch),
        pace_for(largest, largest).edited,
        lambda written: replace(manifest, files=tuple(files_of_output(checkpoint))),
        output,
        (checkpoint.files, files),
        stopwatch,
        progress or Silent(),
    )


def _delta_weights(
    delta: CheckpointFiles,
    base: CheckpointFiles,
    records: list[EditRecord],
    manifest: Manifest,
    stopwatch: Stopwatch,
) -> Iterator[EditedTensor]:
    """The same stream as `edited_weights`, taken from a delta; base and delta are checked against the manifest."""
    with stopwatch("start-up"):
        from qkedit.steering.engine.layer_weights import read_tensor, sha256

    entries = delta_entries(delta)
    expected = {tensor.name: tensor.sha256_after for tensor in manifest.tensors}
    for record in records:
        name = record.tensor.name
        entry = entries.get(name)
        whole = entry is not None and (entry.dtype, entry.shape) == (record.tensor.dtype, record.tensor.shape)
        with stopwatch("reading"):
            original = hashlib.sha256(read_bytes(base, record.tensor)).hexdigest()
            edited = read_tensor(delta, entries[name]) if whole else None
        if original != record.sha256_before:
            raise CheckpointError(
                f"tensor {name} is not the one that was edited",
                where=base.name,
                remedy="give the model that the delta was made from, at the same revision",
            )
        if edited is None or sha256(edited) != expected[name]:
            raise CheckpointError(
                f"tensor {name} is missing or damaged", where=DELTA_FILE, remedy="make or fetch the delta again"
            )
        yield EditedTensor(name, edited, record)
