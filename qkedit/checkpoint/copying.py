"""Copy files and byte ranges as fast as the system can, beside other work, and never through a link.

A shard some ranges of which are to be replaced is made in two steps that share no byte, so that the copying and
the mathematics wait for each other nowhere:

    if not clone_or_reserve(source, shard, link):                        # blocks shared, or a file of holes
        jobs[name] = partial(copy_ranges, source, shard, complement(planned, size))
    …                                                                    # pwrite of the planned ranges, at any time
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from enum import StrEnum
from fcntl import ioctl
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from qkedit.checkpoint.file_errors import explained
from qkedit.errors import CheckpointError, QkeditError

# linux/fs.h: _IOW(0x94, 9, int). Where a system or architecture numbers it otherwise, the call fails and we copy.
_FICLONE = 0x40049409

# Bytes of one copy_file_range. From 1 MiB to 2 GiB a call, 2 GB took as long as `cp` within the scatter (0.77 to
# 0.82 s). A call can be neither cut off nor counted while it runs, and holds off other writes to the file: at
# 16 MiB for 6 ms, on a slow disk for a sixth of a second.
_CHUNK = 16 << 20

# Bytes read at once where the system cannot copy by itself: 2 GB took 0.92 to 0.99 s at 128 KiB to 1 MiB, 1.06 s
# at 8 MiB, which no longer fits a processor's cache.
_BUFFER = 256 << 10

# A copy takes a whole core, on which the system moves some 2 GB/s: on 2 idle cores two copies took 0.85 of the time
# that one took, and beside other work they get a larger share. More would only fill a disk's queue.
COPIES_AT_ONCE = 2

OnBytes = Callable[[int], None]
"""Called with the bytes finished since the last call; what it raises stops the copy."""

CopyJob = Callable[[OnBytes], object]
"""One copy, ready to run, as `functools.partial(copy_file, source, destination, link)` makes it."""

Ranges = tuple[tuple[int, int], ...]
"""Byte ranges [start, end) of a file."""


class LinkMode(StrEnum):
    """How a file that stays as it is comes into the output."""

    AUTO = "auto"  # reflink where the file system can, copy elsewhere
    COPY = "copy"  # the system copies the bytes; some file systems share blocks even so
    REFLINK = "reflink"  # blocks shared until either file is written to
    HARD = "hard"  # the same file under a second name: writing to either changes both
    SYMLINK = "symlink"  # a reference to the source's place


def complement(ranges: Iterable[tuple[int, int]], size: int) -> Ranges:
    """Return the gaps between `ranges` in a file of `size` bytes, in order.

    Raises:
        ValueError: ranges overlap, run backwards or leave the file.
    """
    gaps = []
    position = 0
    for start, end in sorted(ranges):
        if not position <= start <= end <= size:
            raise ValueError(f"range [{start}, {end}) overlaps another or leaves the file of {size} bytes")
        if position < start:
            gaps.append((position, start))
        position = end
    if position < size:
        gaps.append((position, size))
    return tuple(gaps)


def clone_or_reserve(source: Path, destination: Path, link: LinkMode) -> bool:
    """Create `destination` as a file that may be written to without touching `source`.

    Args:
        source: the file to clone; symbolic links are followed.
        destination: a path at which nothing stands.
        link: AUTO, COPY or REFLINK; HARD and SYMLINK count as AUTO, since such a file would be the source itself.

    Returns:
        True if it holds the bytes of `source` already, False if it is a file of zeros of the same size.

    Raises:
        QkeditError: the system refused, or a reflink was asked for and is impossible.
    """
    with _opened(source) as reader, _created(destination) as writer:
        if link is not LinkMode.COPY and _clone(reader, writer):
            return True
        if link is LinkMode.REFLINK:
            raise QkeditError(
                f"the file system cannot share blocks with {source}",
                where=str(destination),
                remedy="choose --link auto, or an --out beside the model on a file system with reflinks",
            )
        with explained("reserve its size", destination):
            os.ftruncate(writer, os.fstat(reader).st_size)
    return False


def copy_ranges(source: Path, destination: Path, ranges: Iterable[tuple[int, int]], on_bytes: OnBytes) -> int:
    """Copy exactly these byte ranges of `source` to the same offsets of the existing file `destination`.

    Returns:
        The bytes copied.

    Raises:
        CheckpointError: `source` ends within a range.
        QkeditError: the system refused.
    """
    copied = 0
    with _opened(source) as reader, _opened(destination, os.O_WRONLY | os.O_NOFOLLOW) as writer:
        for start, end in ranges:
            position = start
            while position < end:
                length = _copy_in_kernel(reader, writer, position, min(_CHUNK, end - position))
                if not length:
                    with explained("read", source):
                        block = os.pread(reader, min(_BUFFER, end - position), position)
                    if not block:
                        raise CheckpointError(
                            f"ends at byte {position}, where bytes up to {end} were expected",
                            where=str(source),
                            remedy="the file is incomplete or was changed; fetch it again",
                        )
                    with explained("write", destination):
                        length = os.pwrite(writer, block, position)
                position += length
                copied += length
                on_bytes(length)
    return copied


def copy_file(source: Path, destination: Path, link: LinkMode, on_bytes: OnBytes) -> None:
    """Bring one unchanged file into the output; links on the way to `source` are resolved first.

    Args:
        source: the file, as it stands or as a link into a blob store.
        destination: a path at which nothing stands.
        link: how. Every way but HARD makes a file (or link) with the default permissions of a new one.
        on_bytes: told of every byte of the file, linked ones too.

    Raises:
        QkeditError: the system refused, or the kind of link asked for is impossible.
    """
    if link in (LinkMode.HARD, LinkMode.SYMLINK):
        with _opened(source) as reader:
            size = os.fstat(reader).st_size
        real = Path(os.path.realpath(source))
        make, kind = (os.link, "hard") if link is LinkMode.HARD else (os.symlink, "symbolic")
        with explained(f"make a {kind} link to {real}", destination, remedy="choose --link copy"):
            make(real, destination)
        on_bytes(size)
        return
    cloned = clone_or_reserve(source, destination, link)
    with explained("read its size", destination):
        size = destination.stat().st_size
    if cloned:
        on_bytes(size)
    else:
        copy_ranges(source, destination, [(0, size)], on_bytes)


class BackgroundCopy:
    """Copies that run in threads of their own, from the moment this object is made.

        with BackgroundCopy(jobs, on_bytes) as copying:
            …
            copying.wait_for("model-00002-of-00005.safetensors")
            …
        # here every job is done; or the block raised, and the threads have stopped

    The system calls of a copy release Python's lock, so the copies take other cores where there are some. After the
    first that fails, none is begun.

    Args:
        jobs: the copies by the name of what they make; they are begun in this order.
        on_bytes: called from the copying threads.
        threads: how many copies run at once.
    """

    def __init__(self, jobs: Mapping[str, CopyJob], on_bytes: OnBytes, threads: int = COPIES_AT_ONCE) -> None:
        self._on_bytes = on_bytes
        self._stopped = Event()
        self._started = time.perf_counter()
        executor = ThreadPoolExecutor(threads, thread_name_prefix="qkedit-copy")
        self._copies = {name: executor.submit(self._run, job) for name, job in jobs.items()}
        executor.shutdown(wait=False)

    def __enter__(self) -> Self:
        """Return self; the copies are under way."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the copies, or stop them if the block or the waiting was broken off."""
        try:
            if error is None:
                self.join()
        finally:
            self.cancel()

    def check(self) -> None:
        """Raise the error of a copy that has failed already, as `wait_for` does; otherwise return at once."""
        if self._stopped.is_set():
            self.join()

    def wait_for(self, name: str) -> None:
        """Wait for what is called `name`; a name without a job is there already.

        Raises:
            QkeditError: what stopped the copies.
            concurrent.futures.CancelledError: `cancel` stopped them.
        """
        if name in self._copies:
            wait([self._copies[name]])
            self.check()

    def join(self) -> float:
        """Wait for the last copy, and return the seconds from the first's start; raises as `wait_for` does."""
        wait(self._copies.values())
        failures = [error for copy in self._copies.values() if (error := copy.exception()) is not None]
        # A copy that was not begun, or was stopped midway, says no more than that another failed.
        for error in sorted(failures, key=lambda error: isinstance(error, CancelledError)):
            raise error
        return max((copy.result() for copy in self._copies.values()), default=self._started) - self._started

    def cancel(self) -> None:
        """Stop within one chunk, and return when no more bytes are written."""
        self._stopped.set()
        wait(self._copies.values())

    def _run(self, job: CopyJob) -> float:
        """Run one copy and return when it ended."""
        try:
            self._count(0)
            job(self._count)
        except BaseException:
            self._stopped.set()
            raise
        return time.perf_counter()

    def _count(self, length: int) -> None:
        if self._stopped.is_set():
            raise CancelledError
        if length:
            self._on_bytes(length)


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The descriptor of an existing regular file."""
    with explained("open", path):
        # Without O_NONBLOCK, a named pipe in a model directory would hold the run for ever.
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError("is not a file", where=str(path), remedy="remove it from the model's directory")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _created(path: Path) -> Iterator[int]:
    """The descriptor of a new file with default permissions; O_EXCL, so never something a link points to."""
    with explained("create", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _clone(reader: int, writer: int) -> bool:
    try:
        ioctl(writer, _FICLONE, reader)
    except OSError:  # not this system, file system or pair; if the cause is another, copying will meet and name it
        return False
    return True


def _copy_in_kernel(reader: int, writer: int, offset: int, length: int) -> int:
    """Bytes that the system copied by itself; 0 where it cannot, for whatever reason.

    No reason is looked at, as reading and writing the same bytes either works or says which of the two failed.
    """
    if not hasattr(os, "copy_file_range"):  # not Linux
        return 0
    try:
        return os.copy_file_range(reader, writer, length, offset, offset)
    except OSError:
        return 0
