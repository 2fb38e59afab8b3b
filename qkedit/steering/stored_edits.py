"""Read the stream of edits that an output holds: merged from an adapter, or with factors from other layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import ADAPTER_FILE, CONFIG_FILE, DELTA_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import EditedChannel, Manifest
from qkedit.errors import CheckpointError
from qkedit.steering.adapters.peft_files import factor_names
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.reading import tensors_of
from qkedit.steering.manifest import records_of
from qkedit.steering.sources.fitting import query_layers, refuse_misfits, refuse_non_finite, refuse_other_changes
from qkedit.stopwatch import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor


def factored_edits(
    files: LocalFiles, manifest: Manifest, base: Checkpoint, stopwatch: Stopwatch
) -> Iterator[EditedTensor]:
    """Yield the stream of a delta or of a full directory with its factors, found in the difference to the base.

    The arguments and errors are those of `merged_edits`.
    """
    layers = layers_of(manifest, base)
    full = CONFIG_FILE in files.sizes()
    entries = open_checkpoint(files).tensors if full else tensors_of(files, DELTA_FILE)
    for before, edited in _pairs(files, entries, manifest, base, layers, stopwatch):
        from qkedit.steering.adapters.factors import factors_between

        with stopwatch("mathematics"):
            query = layers[edited.name].query
            channel = manifest.options.channel if manifest.options else EditedChannel.FULL
            factors = factors_between(before, edited.tensor, edited.record, query, channel)
        yield replace(edited, factored=factors)


def layers_of(manifest: Manifest, base: Checkpoint) -> dict[str, AttentionLayer]:
    """Return the edited layers, by the name of their query tensor.

    Raises:
        CheckpointError: the manifest cannot be that of an edit of this base.
    """
    found = query_layers(base)
    refuse_misfits(manifest, found, base.files.name)
    return {tensor.name: found[tensor.name] for tensor in manifest.tensors}


def _pairs(
    files: LocalFiles,
    entries: Mapping[str, TensorEntry],
    manifest: Manifest,
    base: Checkpoint,
    layers: Mapping[str, AttentionLayer],
    stopwatch: Stopwatch,
) -> Iterator[tuple[Tensor, EditedTensor]]:
    """Yield each tensor of the base with its edited counterpart."""
    with stopwatch("start-up"):
        from qkedit.steering.engine.layer_weights import read_tensor, sha256

    expected = {tensor.name: tensor for tensor in manifest.tensors}
    for record in records_of(manifest, base.tensors):
        name = record.tensor.name
        entry = entries.get(name)
        whole = entry is not None and (entry.dtype, entry.shape) == (record.tensor.dtype, record.tensor.shape)
        with stopwatch("reading"):
            before = _original(base, record)
            after = read_tensor(files, entries[name]) if whole else None
        if after is None or sha256(after) != expected[name].sha256_after:
            raise _damaged(name, record.tensor.shard if CONFIG_FILE in files.sizes() else DELTA_FILE)
        refuse_other_changes(expected[name], before, after, layers[name].query)
        yield before, EditedTensor(name, after, record)


def merged_edits(
    files: CheckpointFiles, manifest: Manifest, base: Checkpoint, stopwatch: Stopwatch
) -> Iterator[EditedTensor]:
    """Yield each tensor of the base with an adapter's factors added to it; every tensor is checked when it is read.

    Args:
        files: the adapter's files.
        manifest: the adapter's manifest.
        base: the model that was edited.
        stopwatch: measures reading and mathematics.

    Raises:
        CheckpointError: the base is not the model that was edited, or the adapter is damaged.
    """
    with stopwatch("start-up"):
        from qkedit.steering.adapters.factors import merged

    entries, layers = tensors_of(files, ADAPTER_FILE), layers_of(manifest, base)
    adapter = {layer.tensor: layer for layer in manifest.adapter or ()}
    for record in records_of(manifest, base.tensors):
        name = record.tensor.name
        found = adapter[name]
        right_name, left_name = factor_names(found.module)
        with stopwatch("reading"):
            before = _original(base, record)
            right = read_factor(files, entries, right_name, found.sha256_a)
            left = read_factor(files, entries, left_name, found.sha256_b)
        with stopwatch("mathematics"):
            after, moved = merged(before, left, right, layers[name].query, record)
            refuse_non_finite(name, before, after)
        heads = zip(record.heads, moved, strict=True)
        yield EditedTensor(
            name, after, replace(record, heads=tuple(replace(head, relative_change=share) for head, share in heads))
        )


def _original(base: Checkpoint, record: EditRecord) -> Tensor:
    """Read a tensor of the base. Raises CheckpointError if it is not the one that was edited."""
    from qkedit.steering.engine.layer_weights import read_tensor, sha256

    tensor = read_tensor(base.files, record.tensor)
    if sha256(tensor) != record.sha256_before:
        raise CheckpointError(
            f"tensor {record.tensor.name} is not the one that was edited",
            where=base.files.name,
            remedy="give the model that the edit was made from, at the same revision",
        )
    return tensor


def read_factor(files: CheckpointFiles, entries: Mapping[str, TensorEntry], name: str, expected: str) -> Tensor:
    """Read a factor of an adapter. Raises CheckpointError if it is missing or damaged."""
    from qkedit.steering.engine.layer_weights import read_tensor, sha256

    entry = entries.get(name)
    if entry is None or entry.dtype != "F32" or len(entry.shape) != 2 or 0 in entry.shape:
        raise _damaged(name, ADAPTER_FILE)
    tensor = read_tensor(files, entry)
    if sha256(tensor) != expected:
        raise _damaged(name, ADAPTER_FILE)
    return tensor


def _damaged(name: str, where: str) -> CheckpointError:
    return CheckpointError(f"tensor {name} is missing or damaged", where=where, remedy="make or fetch the edit again")
