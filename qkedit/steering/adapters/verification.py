"""Compare an adapter with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from qkedit.checkpoint.contents import ADAPTER_CONFIG, ADAPTER_FILE
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import CheckpointError
from qkedit.steering.adapters.peft_files import factor_names
from qkedit.steering.engine.reading import sha256_of, tensors_of


def adapter_mismatches(files: CheckpointFiles, manifest: Manifest, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Yield what does not hold of an adapter's factors and of its config, which says how they are added.

    Args:
        files: of the adapter.
        manifest: of the adapter.
        on_bytes: told how many bytes were read.
    """
    try:
        entries = tensors_of(files, ADAPTER_FILE)
    except CheckpointError as error:
        yield f"{error.where}: {error.what}"
        entries = {}
    expected: dict[str, str] = {}
    for layer in manifest.adapter or ():
        expected |= dict(zip(factor_names(layer.module), (layer.sha256_a, layer.sha256_b), strict=True))
    for name, digest in expected.items():
        if name not in entries:
            yield f"{name}: missing"
        elif sha256_of(files, entries[name], on_bytes) != digest:
            yield f"{name}: SHA-256 differs from the manifest"
    yield from (f"{name}: not in the manifest" for name in sorted(entries.keys() - expected.keys()))
    size = files.sizes().get(ADAPTER_CONFIG)
    if size is None:
        yield f"{ADAPTER_CONFIG}: missing"
    elif hashlib.sha256(files.read(ADAPTER_CONFIG, 0, size)).hexdigest() != manifest.generated.get(ADAPTER_CONFIG):
        yield f"{ADAPTER_CONFIG}: SHA-256 differs from the manifest"
