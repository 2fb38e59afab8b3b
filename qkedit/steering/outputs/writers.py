"""Bring a stream of edited tensors into a directory: the whole checkpoint, or the edited tensors alone.

The full layout copies every shard except the planned byte ranges, which are written as the tensors come; so copying,
reading and mathematics run side by side and meet in no byte. torch is imported when the copying is under way already:
importing it takes as long as copying some gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.background_copy import BackgroundCopy, CopyJob
from qkedit.checkpoint.io.copying import LinkMode, clone_or_reserve, complement, copy_file, copy_ranges
from qkedit.checkpoint.io.file_errors import explained, open_descriptor
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.io.tensor_file import lay_out
from qkedit.errors import QkeditError
from qkedit.steering.card import make_card
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.progress import Progress
from qkedit.steering.engine.reading import stands_at
from qkedit.steering.engine.stopwatch import Stopwatch
from qkedit.steering.manifest import DELTA_FILE, MANIFEST_FILE, dump_manifest
from qkedit.steering.outputs.checks import EDGE_BYTES, Edges, check_edges, check_headers, not_as_computed
from qkedit.steering.outputs.names import CARD_FILE, name_in_output

# For more at once Linux takes larger pages, which a virtual machine may have to get back from its host first: a tensor
# of 26 MB then took up to 81 ms instead of at most 18 (docs/benchmarks.md).
_WRITTEN_AT_ONCE = 1 << 20

ManifestMaker = Callable[[list[EditRecord], dict[str, str]], dict[str, Any]]


def write_full(
    staging: Path,
    checkpoint: Checkpoint,
    planned: dict[str, TensorEntry],
    edits: EditedTensors,
    manifest_of: ManifestMaker,
    link: LinkMode,
    stopwatch: Stopwatch,
    progress: Progress,
) -> dict[str, Any]:
    """Write the whole checkpoint with the planned tensors replaced; returns the manifest it wrote."""
    touched: dict[str, list[TensorEntry]] = {}
    for entry in planned.values():
        touched.setdefault(entry.shard, []).append(entry)
    if not isinstance(checkpoint.files, LocalFiles):
        edits = _begun(edits)
    copies = _prepare_files(staging, checkpoint, touched, link, progress)
    with BackgroundCopy(copies, progress.bytes_done) as copying:
        records, after, edges = _write_tensors(staging, edits, planned, stopwatch, progress, copying.check)
        manifest = manifest_of(records, after)
        card = make_card(checkpoint, manifest)
        for shard in touched:
            copying.wait_for(shard)
        with stopwatch("checks"):
            check_headers(staging, checkpoint, touched)
            check_edges(staging, edges)
        stopwatch.add("copying", copying.join())
        with stopwatch("checks"):
            check_headers(staging, checkpoint, set(checkpoint.shards) - set(touched))
    _write_file(staging / MANIFEST_FILE, dump_manifest(manifest))
    _write_file(staging / CARD_FILE, card)
    return manifest


def _begun(edits: EditedTensors) -> EditedTensors:
    """The same edits, the first of which is made now: what stops it should not be found out after a download."""
    iterator = iter(edits)
    return chain([*islice(iterator, 1)], iterator)


def write_delta(
    staging: Path,
    planned: dict[str, TensorEntry],
    edits: EditedTensors,
    manifest_of: ManifestMaker,
    stopwatch: Stopwatch,
    progress: Progress,
) -> dict[str, Any]:
    """Write the edited tensors alone, in one safetensors file; returns the manifest it wrote."""
    prefix, places = lay_out(planned.values(), DELTA_FILE)
    _write_file(staging / DELTA_FILE, prefix)
    records, after, _ = _write_tensors(staging, edits, places, stopwatch, progress, lambda: None)
    manifest = manifest_of(records, after)
    _write_file(staging / MANIFEST_FILE, dump_manifest(manifest))
    return manifest


def _prepare_files(
    staging: Path,
    checkpoint: Checkpoint,
    touched: dict[str, list[TensorEntry]],
    link: LinkMode,
    progress: Progress,
) -> dict[str, CopyJob]:
    """Create the touched shards, and return the copies that fill everything else, by file.

    Touched shards come first, so that they are checked while the others are copied; and small files last, so that no
    thread ends long before the others.
    """
    copies: dict[str, CopyJob] = {}
    sizes = checkpoint.files.sizes()
    for file in sorted(checkpoint.kept_files, key=lambda file: (file not in touched, -sizes[file])):
        name = name_in_output(checkpoint, file)
        if name is None:
            continue
        destination = staging / name
        with explained("create a directory", destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
        source = checkpoint.files.local_path(file)
        if file not in checkpoint.shards:
            copies[file] = partial(copy_file, source, destination, sizes[file], LinkMode.COPY)
        elif file not in touched:
            copies[file] = partial(copy_file, source, destination, checkpoint.shards[file].size, link)
        else:
            size = checkpoint.shards[file].size
            gaps = complement([(entry.start, entry.end) for entry in touched[file]], size)
            if clone_or_reserve(source, destination, size, link):
                progress.bytes_done(sum(end - start for start, end in gaps))
            else:
                copies[file] = partial(copy_ranges, source, destination, gaps)
    return copies


def _write_tensors(
    directory: Path,
    edits: EditedTensors,
    places: dict[str, TensorEntry],
    stopwatch: Stopwatch,
    progress: Progress,
    check: Callable[[], None],
) -> tuple[list[EditRecord], dict[str, str], list[Edges]]:
    """Write each tensor at its place and read it back, while the system holds it in memory.

    Args:
        directory: holds the files.
        edits: the tensors.
        places: where each stands.
        stopwatch: counts hashing, writing and checks.
        progress: is told.
        check: raises what speaks against going on.

    Returns:
        The records, the SHA-256 of each tensor by its name, and the tensors' edges.
    """
    files = LocalFiles(directory)
    records: list[EditRecord] = []
    after: dict[str, str] = {}
    edges: list[Edges] = []
    with _opened_for_writing(directory, {entry.shard for entry in places.values()}) as descriptors:
        for edited in edits:
            from qkedit.steering.engine.edited_weights import stored_bytes  # the first edit has imported torch

            check()
            name, record = edited.name, edited.record
            entry, content = places[name], stored_bytes(edited.tensor)
            with stopwatch("hashing"):
                after[name] = sha256(content).hexdigest()
            if after[name] == record.sha256_before:
                raise QkeditError(
                    "the chosen heads have no modes to suppress, so every stored value stays as it was",
                    where=f"tensor {name}",
                    remedy=f"leave out layer {record.layer} with --layers",
                )
            with stopwatch("writing"), explained("write", entry.shard):
                data, position = content, entry.start
                while data:
                    written = os.pwrite(descriptors[entry.shard], data[:_WRITTEN_AT_ONCE], position)
                    data, position = data[written:], position + written
            with stopwatch("checks"):
                if not stands_at(files, entry, content):
                    raise not_as_computed(entry)
            records.append(record)
            edges.append((entry, bytes(content[:EDGE_BYTES]), bytes(content[-EDGE_BYTES:])))
            del edited, content, data  # while the next one is edited
            progress.layer_done()
            progress.bytes_done(entry.nbytes)
    missing = set(places) - set(after)
    if missing:
        raise QkeditError(f"{len(missing)} planned tensors were not edited", where=min(missing))
    return records, after, edges


@contextmanager
def _opened_for_writing(staging: Path, files: Iterable[str]) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        descriptors = {}
        for file in files:
            descriptors[file] = stack.enter_context(open_descriptor(staging / file, os.O_WRONLY | os.O_NOFOLLOW))
        yield descriptors


def _write_file(path: Path, content: bytes) -> None:
    with explained("write", path):
        path.write_bytes(content)
