"""Compare an adapter with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import ADAPTER_CONFIG, ADAPTER_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import CheckpointError
from qkedit.steering.adapters.peft_files import config_fields, factor_names, strange_settings
from qkedit.steering.engine.reading import sha256_of, tensors_of


def adapter_mismatches(files: CheckpointFiles, manifest: Manifest, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Yield the mismatches of an adapter's factors and of its config, which controls how they are added.

    Args:
        files: the adapter's files.
        manifest: the adapter's manifest.
        on_bytes: called with the number of bytes read.
    """
    try:
        entries = tensors_of(files, ADAPTER_FILE)
    except CheckpointError as error:
        yield f"{error.where}: {error.what}"
        entries = {}
    expected: dict[str, str] = {}
    widths = {tensor.name: tensor.shape[-1] for tensor in manifest.tensors}
    shapes: dict[str, tuple[int | None, int | None]] = {}
    for layer in manifest.adapter or ():
        names = factor_names(layer.module)
        expected |= dict(zip(names, (layer.sha256_a, layer.sha256_b), strict=True))
        shapes |= dict(zip(names, ((layer.rank, widths[layer.tensor]), (None, layer.rank)), strict=True))
    for name, digest in expected.items():
        if name not in entries:
            yield f"{name}: missing"
        elif not _fits(entries[name], shapes[name]):
            yield f"{name}: dtype or shape differs from the manifest"
        elif sha256_of(files, entries[name], on_bytes) != digest:
            yield f"{name}: SHA-256 differs from the manifest"
    yield from (f"{name}: not in the manifest" for name in sorted(entries.keys() - expected.keys()))
    yield from _config_mismatches(files, manifest)


def _fits(entry: TensorEntry, shape: tuple[int | None, int | None]) -> bool:
    """Return whether a factor has the dtype that qkedit writes, and this shape; None stands for any size."""
    return (
        entry.dtype == "F32"
        and len(entry.shape) == len(shape)
        and all(wanted in (None, size) for size, wanted in zip(entry.shape, shape, strict=True))
    )


def _config_mismatches(files: CheckpointFiles, manifest: Manifest) -> Iterator[str]:
    """Yield the faults of the config, which controls how the factors are added: its hash could be forged, too."""
    size = files.sizes().get(ADAPTER_CONFIG)
    if size is None:
        yield f"{ADAPTER_CONFIG}: missing"
        return
    content = files.read(ADAPTER_CONFIG, 0, size)
    if hashlib.sha256(content).hexdigest() != manifest.generated.get(ADAPTER_CONFIG):
        yield f"{ADAPTER_CONFIG}: SHA-256 differs from the manifest"
    ranks = {layer.module: layer.rank for layer in manifest.adapter or ()}
    try:
        strange = strange_settings(content, config_fields(manifest.base.model, manifest.base.revision, ranks))
    except ValueError as error:
        yield f"{ADAPTER_CONFIG}: is not a config ({error})"
    else:
        yield from (f"{ADAPTER_CONFIG}: {name} is not that of the edit" for name in strange)


def rows_beside_heads(
    files: CheckpointFiles, manifest: Manifest, base: Checkpoint, layers: Mapping[str, AttentionLayer]
) -> Iterator[str]:
    """Yield the rows that an inference engine would change outside the heads that the manifest lists.

    Args:
        files: the adapter's files; the factors were compared with the manifest before.
        manifest: the adapter's manifest.
        base: the model that was edited.
        layers: the layers of the base, by the name of their query tensor.
    """
    from qkedit.steering.engine.layer_weights import read_tensor
    from qkedit.steering.sources.adapter_edit import adapter_edit

    edit = adapter_edit(files.name, files, manifest)
    for tensor in manifest.tensors:
        try:
            edit.edited(tensor, read_tensor(base.files, base.tensors[tensor.name]), layers[tensor.name].query)
        except CheckpointError as error:
            yield f"{tensor.name}: {error.what}"
