"""The full output: the whole checkpoint with the edited tensors in their places.

Every shard is copied except the planned byte ranges, which are written as the tensors arrive; so copying, reading and
mathematics run in parallel and never write the same byte. torch is imported while the copies run: its import takes as
long as copying some gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.background_copy import BackgroundCopy, CopyJob
from qkedit.checkpoint.io.copying import LinkMode, clone_or_reserve, complement, copy_file, copy_ranges
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.steering.card import make_card
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.progress import Progress
from qkedit.steering.outputs.checks import check_edges, check_headers
from qkedit.steering.outputs.names import CARD_FILE, name_in_output
from qkedit.steering.outputs.tensors import write_tensors
from qkedit.steering.outputs.writer import Written
from qkedit.stopwatch import Stopwatch


@dataclass(frozen=True)
class FullWriter:
    """Write the whole checkpoint with the planned tensors replaced."""

    checkpoint: Checkpoint
    planned: dict[str, TensorEntry]
    link: LinkMode
    stopwatch: Stopwatch
    progress: Progress

    @property
    def bytes_to_write(self) -> int:
        """Return the bytes of every file of the base that the output holds."""
        return self.checkpoint.kept_bytes

    @property
    def left_out(self) -> dict[str, str]:
        """Return the files of the base that no output may hold, such as weights in another format."""
        return self.checkpoint.left_out

    def generated(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the model card."""
        return {CARD_FILE: make_card(self.checkpoint, manifest)}

    @contextmanager
    def writing(self, staging: Path, edits: EditedTensors) -> Iterator[Written]:
        """Write the tensors while everything else is copied; see `Writer`."""
        checkpoint, stopwatch = self.checkpoint, self.stopwatch
        touched: dict[str, list[TensorEntry]] = {}
        for entry in self.planned.values():
            touched.setdefault(entry.shard, []).append(entry)
        if not isinstance(checkpoint.files, LocalFiles):
            edits = _begun(edits)
        copies = _prepare_files(staging, checkpoint, touched, self.link, self.progress)
        with BackgroundCopy(copies, self.progress.bytes_done) as copying:
            written, edges = write_tensors(staging, edits, self.planned, stopwatch, self.progress, copying.check)
            yield written
            for shard in touched:
                copying.wait_for(shard)
            with stopwatch("checks"):
                check_headers(staging, checkpoint, touched)
                check_edges(staging, edges)
            stopwatch.add("copying", copying.join())
            with stopwatch("checks"):
                check_headers(staging, checkpoint, set(checkpoint.shards) - set(touched))


def _begun(edits: EditedTensors) -> EditedTensors:
    """Return the same edits, with the first one made now, so that its errors do not come after a download."""
    iterator = iter(edits)
    return chain([*islice(iterator, 1)], iterator)


def _prepare_files(
    staging: Path,
    checkpoint: Checkpoint,
    touched: dict[str, list[TensorEntry]],
    link: LinkMode,
    progress: Progress,
) -> dict[str, CopyJob]:
    """Create the touched shards, and return the copies that fill everything else, by file.

    Touched shards come first, so that they are checked while the others are copied. Small files come last, so that
    all threads end at about the same time.
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
