"""Bring the page cache to a known state, and run plain loops over files as lower bounds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

CacheState = Literal["warm", "cold"]

ByteRange = tuple[Path, int, int]
"""A file and its bytes [start, end)."""

# The maximum number of bytes that Linux moves in one system call.
_MOST_AT_ONCE = 0x7FFFF000
_READ_THROUGH = 8 << 20
# Whole tensors took up to four times as long, in memory that a virtual machine must request from its host.
_WRITTEN_AT_ONCE = 1 << 20


def settle(directory: Path, cache: CacheState) -> None:
    """Flush earlier writes, then load a directory's files into the page cache or drop them from it.

    If the directory is larger than the memory, `warm` leaves the files that were read last in the cache.
    """
    os.sync()
    for path in files_below(directory):
        with open(path, "rb", buffering=0) as file:
            if cache == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                buffer = bytearray(_READ_THROUGH)
                while file.readinto(buffer):
                    pass


def fsync_below(directory: Path) -> None:
    """Wait until the disk holds every file and folder of a directory."""
    for path in [*files_below(directory), *(Path(folder) for folder, _, _ in os.walk(directory))]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def copy_plainly(source: Path, destination: Path, files: Iterable[str]) -> None:
    """Copy files by `copy_file_range`, or `sendfile` if that is refused, in the largest possible pieces."""
    for file in files:
        target = destination / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source / file, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
            position, size = 0, os.fstat(reader.fileno()).st_size
            while position < size:
                position += _copy_in_kernel(reader.fileno(), writer.fileno(), position)


def read_plainly(ranges: Iterable[ByteRange]) -> None:
    """Read byte ranges by `pread` and discard them."""
    for content in pieces(ranges):
        del content


def pieces(ranges: Iterable[ByteRange]) -> Iterator[bytes]:
    """Yield the bytes of the ranges, read by `pread`, each in one piece if the system returns it in one."""
    for path, start, end in ranges:
        with open(path, "rb", buffering=0) as file:
            position = start
            while position < end:
                content = os.pread(file.fileno(), end - position, position)
                position += len(content)
                yield content


def write_plainly(path: Path, contents: Iterable[memoryview]) -> None:
    """Write buffers in turn into a new file by `pwrite`, in pieces of the fastest size."""
    with open(path, "xb", buffering=0) as file:
        position = 0
        for content in contents:
            while content:
                written = os.pwrite(file.fileno(), content[:_WRITTEN_AT_ONCE], position)
                content, position = content[written:], position + written


def files_below(directory: Path) -> list[Path]:
    """Return every file below a directory, sorted."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _copy_in_kernel(reader: int, writer: int, position: int) -> int:
    try:
        return os.copy_file_range(reader, writer, _MOST_AT_ONCE, position, position)
    except OSError:
        os.lseek(writer, position, os.SEEK_SET)
        return os.sendfile(writer, reader, position, _MOST_AT_ONCE)
