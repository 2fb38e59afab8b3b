"""Copy files and byte ranges as fast as the system can, during other work, and never through a link.

A shard some ranges of which are to be replaced is made in two steps that share no byte, so that the copying and
the mathematics wait for each other nowhere:

    if not clone_or_reserve(source, shard, size, link):                  # blocks shared, or a file of holes
        jobs[name] = partial(copy_ranges, source, shard, complement(planned, size))
    …                                                                    # pwrite of the planned ranges, at any time
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

# linux/fs.h: _IOW(0x94, 9, int). Where a system or architecture numbers it otherwise, the call fails and we copy.
_FICLONE = 0x40049409

# Bytes of one copy_file_range. From 1 MiB to 2 GiB a call, 2 GB took as long as `cp` within the scatter (0.77 to
# 0.82 s). A call can be neither cut off nor counted while it runs, and holds off other writes to the file: at
# 16 MiB for 6 ms, on a slow disk for a sixth of a second.
_CHUNK = 16 << 20

# Bytes read at once where the system cannot copy by itself: 2 GB took 0.92 to 0.99 s at 128 KiB to 1 MiB, 1.06 s
# at 8 MiB, which no longer fits a processor's cache.
_BUFFER = 256 << 10

OnBytes = Callable[[int], None]
"""Called with the bytes finished since the last call; what it raises stops the copy."""

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


def clone_or_reserve(source: Path, destination: Path, size: int, link: LinkMode) -> bool:
    """Create `destination` as a file of `size` bytes that may be written to without touching `source`.

    Args:
        source: the file to clone; symbolic links are followed.
        destination: a path at which nothing exists.
        size: the bytes that `source` has according to the plan; another program may have changed it since.
        link: AUTO, COPY or REFLINK; HARD and SYMLINK count as AUTO, since such a file would be the source itself.

    Returns:
        True if it holds the bytes of `source` already, False if it is a file of zeros.

    Raises:
        CheckpointError: the clone has another size.
        QkeditError: the system refused, or a reflink was asked for and is impossible.
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
                remedy="choose --link auto, or an --out beside the model on a file system with reflinks",
            )
        with explained("reserve its size", destination):
            os.ftruncate(writer, size)
    return False


def can_share_blocks(source: Path, directory: Path) -> bool:
    """Whether a file in `directory` can share its blocks with `source`; tried with a file that is removed again.

    Raises:
        QkeditError: the system refused to make such a file.
    """
    trial = directory / "shares-blocks"
    with _opened(source) as reader, _created(trial) as writer:
        shares = _clone(reader, writer)
    with explained("remove", trial):
        trial.unlink()
    return shares


def copy_ranges(source: Path, destination: Path, ranges: Iterable[tuple[int, int]], on_bytes: OnBytes) -> int:
    """Copy exactly these byte ranges of `source` to the same offsets of the existing file `destination`.

    Holes are not written out: `destination` holds zeros in these ranges, as `clone_or_reserve` makes it.

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
                            f"ends at byte {position}, where bytes up to {end} were expected",
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
    """Bring one unchanged file into the output; links on the way to `source` are resolved first.

    Args:
        source: the file itself, or a link into a blob store.
        destination: a path at which nothing exists.
        size: the bytes that `source` has according to the plan; exactly these are copied.
        link: how. Every way but HARD makes a file (or link) with the default permissions of a new one.
        on_bytes: told of every byte of the file, linked ones too.

    Raises:
        CheckpointError: `source` has become another size.
        QkeditError: the system refused, or the kind of link asked for is impossible.
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
    """The descriptor of an existing regular file."""
    # Without O_NONBLOCK, a named pipe in a model directory would hold the run for ever.
    with open_descriptor(path, flags | os.O_NONBLOCK) as descriptor:
        with explained("look at", path):
            status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a file", where=str(path), remedy="remove it from the model's directory")
        yield descriptor


@contextmanager
def _created(path: Path) -> Iterator[int]:
    """The descriptor of a new file with default permissions; O_EXCL, so never something a link points to."""
    with open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, doing="create") as descriptor:
        yield descriptor


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
