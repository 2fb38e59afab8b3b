"""Copy files and byte ranges as fast as the system can, during other work, and never through a link.

A shard in which some ranges will be replaced is made in two steps that share no byte, so that the copy and the
computation never wait for each other:

    if not clone_or_reserve(source, shard, size, link):                  # blocks shared, or a file of holes
        jobs[name] = partial(copy_ranges, source, shard, complement(planned, size))
    …                                                                    # pwrite the planned ranges at any time
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from fcntl import ioctl
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained, open_descriptor
from qkedit.checkpoint.io.holes import stretches
from qkedit.checkpoint.io.stamps import changed_meanwhile
from qkedit.errors import CheckpointError, QkeditError

# linux/fs.h: _IOW(0x94, 9, int). If a system or architecture has another number, the call fails and we copy.
_FICLONE = 0x40049409

# Bytes per copy_file_range. From 1 MiB to 2 GiB per call, 2 GB took as long as `cp` within the scatter (0.77 to
# 0.82 s). A running call can be neither interrupted nor counted, and it blocks other writes to the file: at 16 MiB
# for 6 ms, on a slow disk for a sixth of a second.
_CHUNK = 16 << 20

# Bytes per read where the system cannot copy by itself: 2 GB took 0.92 to 0.99 s at 128 KiB to 1 MiB, and 1.06 s at
# 8 MiB, which no longer fits a processor's cache.
_BUFFER = 256 << 10

OnBytes = Callable[[int], None]
"""Called with the number of bytes finished since the last call; an exception from it stops the copy."""

Ranges = tuple[tuple[int, int], ...]
"""Byte ranges [start, end) of a file."""


class LinkMode(StrEnum):
    """The way an unchanged file is put into the output."""

    AUTO = "auto"  # reflink if the file system supports it, otherwise copy
    COPY = "copy"  # the system copies the bytes; some file systems still share blocks
    REFLINK = "reflink"  # blocks shared until either file is written to
    HARD = "hard"  # the same file under a second name: writing to either changes both
    SYMLINK = "symlink"  # a reference to the source's path


def complement(ranges: Iterable[tuple[int, int]], size: int) -> Ranges:
    """Return the gaps between `ranges` in a file of `size` bytes, in order.

    Raises:
        ValueError: ranges overlap, are reversed or exceed the file.
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


def clone_or_reserve(source: Path, destination: Path, size: int, link: LinkMode) -> bool:
    """Create `destination` as a file of `size` bytes that may be written to without touching `source`.

    Args:
        source: the file to clone; symbolic links are followed.
        destination: a path at which nothing exists.
        size: the size of `source` according to the plan; another program may have changed it since.
        link: AUTO, COPY or REFLINK; HARD and SYMLINK count as AUTO, since such a file would be the source itself.

    Returns:
        True if it already holds the bytes of `source`, False if it is a file of zeros.

    Raises:
        CheckpointError: the clone has another size.
        QkeditError: the system refused, or a requested reflink is impossible.
    """
    with _opened(source) as reader, _created(destination) as writer:
        if link is not LinkMode.COPY and _clone(reader, writer):
            with explained("read its size", destination):
                cloned = os.fstat(writer).st_size
            if cloned != size:
                raise changed_meanwhile(source)
            return True
        if link is LinkMode.REFLINK:
            raise QkeditError(
                f"the file system cannot share blocks with {source}",
                where=str(destination),
                remedy="choose --link auto, or an --out on the model's file system if it has reflinks",
            )
        with explained("reserve its size", destination):
            os.ftruncate(writer, size)
    return False


def can_share_blocks(source: Path, directory: Path) -> bool:
    """Return whether a file in `directory` can share blocks with `source`, tested with a temporary file.

    Raises:
        QkeditError: the system refused to create the temporary file.
    """
    trial = directory / "shares-blocks"
    with _opened(source) as reader, _created(trial) as writer:
        shares = _clone(reader, writer)
    with explained("remove", trial):
        trial.unlink()
    return shares


def copy_ranges(source: Path, destination: Path, ranges: Iterable[tuple[int, int]], on_bytes: OnBytes) -> int:
    """Copy exactly these byte ranges of `source` to the same offsets of the existing file `destination`.

    Holes are not written: `destination` already holds zeros in these ranges, as `clone_or_reserve` made it.

    Returns:
        The bytes copied.

    Raises:
        CheckpointError: `source` ends within a range.
        QkeditError: the system refused.
    """
    copied = 0
    with _opened(source) as reader, _opened(destination, os.O_WRONLY | os.O_NOFOLLOW) as writer:
        for start, end, is_hole in _stretches(reader, source, ranges):
            position = start
            if is_hole:
                copied += end - start
                on_bytes(end - start)
                continue
            while position < end:
                length = _copy_in_kernel(reader, writer, position, min(_CHUNK, end - position))
                if not length:
                    with explained("read", source):
                        block = os.pread(reader, min(_BUFFER, end - position), position)
                    if not block:
                        raise CheckpointError(
                            f"ends at byte {position}, but bytes up to {end} were expected",
                            where=str(source),
                            remedy="the file is incomplete or was changed; download it again",
                        )
                    with explained("write", destination):
                        length = os.pwrite(writer, block, position)
                position += length
                copied += length
                on_bytes(length)
    return copied


def copy_file(source: Path, destination: Path, size: int, link: LinkMode, on_bytes: OnBytes) -> None:
    """Put one unchanged file into the output; links in the path of `source` are resolved first.

    Args:
        source: the file itself, or a link into a blob store.
        destination: a path at which nothing exists.
        size: the size of `source` according to the plan; exactly this many bytes are copied.
        link: the mode. Every mode except HARD makes a file (or link) with the default permissions of a new one.
        on_bytes: called for every byte of the file, including linked ones.

    Raises:
        CheckpointError: the size of `source` has changed.
        QkeditError: the system refused, or the requested kind of link is impossible.
    """
    if link in (LinkMode.HARD, LinkMode.SYMLINK):
        with _opened(source) as reader, explained("read its size", source):
            if os.fstat(reader).st_size != size:
                raise changed_meanwhile(source)
        real = Path(os.path.realpath(source))
        make, kind = (os.link, "hard") if link is LinkMode.HARD else (os.symlink, "symbolic")
        with explained(f"make a {kind} link to {real}", destination, remedy="choose --link copy"):
            make(real, destination)
        on_bytes(size)
        return
    if clone_or_reserve(source, destination, size, link):
        on_bytes(size)
    else:
        copy_ranges(source, destination, [(0, size)], on_bytes)


def _stretches(reader: int, source: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    for start, end in ranges:
        with explained("read", source):
            found = list(stretches(reader, start, end))
        yield from found


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open an existing regular file and yield its descriptor."""
    # Without O_NONBLOCK, a named pipe in a model directory would block the run forever.
    with open_descriptor(path, flags | os.O_NONBLOCK) as descriptor:
        with explained("look at", path):
            status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a file", where=str(path), remedy="remove it from the model's directory")
        yield descriptor


@contextmanager
def _created(path: Path) -> Iterator[int]:
    """Create a file with default permissions and yield its descriptor; with O_EXCL, so never through a link."""
    with open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, doing="create") as descriptor:
        yield descriptor


def _clone(reader: int, writer: int) -> bool:
    try:
        ioctl(writer, _FICLONE, reader)
    except OSError:  # not supported for this system or pair; the copy will report any other cause
        return False
    return True


def _copy_in_kernel(reader: int, writer: int, offset: int, length: int) -> int:
    """Return the number of bytes that the system copied by itself; 0 if it cannot, for whatever reason.

    The reason does not matter: reading and writing the same bytes either works or tells which of the two failed.
    """
    if not hasattr(os, "copy_file_range"):  # not Linux
        return 0
    try:
        return os.copy_file_range(reader, writer, length, offset, offset)
    except OSError:
        return 0
