"""Where a checkpoint's bytes come from: one protocol, and the directory on disk that implements it.

A source knows names, sizes and byte ranges, nothing of what is inside. `qkedit.checkpoint.hub` has the other
implementation, which fetches ranges of a repository on the hub.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from qkedit.checkpoint.file_errors import remedy_for
from qkedit.checkpoint.stamps import FileStamps
from qkedit.errors import CheckpointError


class CheckpointFiles(Protocol):
    """The files of one checkpoint, wherever they are; names are relative, with "/" separators.

    Every method may be called from several threads. What goes wrong is a QkeditError, never an OSError.
    """

    @property
    def name(self) -> str:
        """What the user called it: a directory's name, "org/name" or "demo"."""
        ...

    @property
    def revision(self) -> str | None:
        """The resolved commit on a hub; None for a directory."""
        ...

    def sizes(self) -> dict[str, int]:
        """Every file's size in bytes, by name, in sorted order."""
        ...

    def read(self, file: str, start: int, end: int) -> bytes:
        """Exactly bytes [start, end) of one file: for headers and configs; tensors use `read_into`."""
        ...

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of one file from `start` on, without a copy in between.

        Args:
            file: a name from `sizes`.
            start: the first byte wanted, absolute in the file.
            buffer: writable and contiguous, of any item type; its length in bytes says how much is read.
        """
        ...

    def local_path(self, file: str) -> Path:
        """A real path (symlinks resolved) that holds the file; downloads it where it is not local yet."""
        ...

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to or replaced since it was first looked at."""
        ...


class LocalFiles:
    """The checkpoint in a directory.

    A hub cache's snapshot is such a directory too: its symlinks to blobs are followed for reading and resolved in
    `local_path`, so that nobody writes through them. Symlinks to directories are not followed.

    Args:
        directory: where the files are.
        name: what reports and manifests call it; the directory's own name by default, so that the manifest does
            not depend on where the directory lies.
    """

    revision: str | None = None

    def __init__(self, directory: str | os.PathLike[str], name: str | None = None) -> None:
        self.directory = Path(directory)
        self.name = name or os.path.basename(os.path.realpath(self.directory))
        self._stamps = FileStamps()

    def __repr__(self) -> str:
        """Name the directory."""
        return f"LocalFiles({str(self.directory)!r})"

    def sizes(self) -> dict[str, int]:
        """Every regular file's size in bytes, by name. Raises CheckpointError for broken symlinks."""
        return dict(sorted(self._regular_files()))

    def size(self, file: str) -> int:
        """One file's size in bytes. Raises CheckpointError if there is none."""
        return self._status(file).st_size

    def read(self, file: str, start: int, end: int) -> bytes:
        """Exactly bytes [start, end) of one file. Raises CheckpointError if the file ends before."""
        # The size is asked first: a header that lies about its length must not make us allocate what it says.
        if not 0 <= start <= end <= self._status(file).st_size:
            raise _too_short(self.directory / file, end)
        buffer = bytearray(end - start)
        self.read_into(file, start, buffer)
        return bytes(buffer)

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `start` on. Raises CheckpointError if the file ends before."""
        read_range_into(self._path(file), start, buffer)

    def local_path(self, file: str) -> Path:
        """The file's real path. Raises CheckpointError if there is none."""
        try:
            return Path(os.path.realpath(self._path(file), strict=True))
        except (OSError, ValueError) as error:
            raise _unreadable(self.directory / file, error) from error

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to, replaced or removed since it was first looked at."""
        self._stamps.check(self._stat)

    def _regular_files(self) -> Iterator[tuple[str, int]]:
        """Name and size of every file and symlink to a file, in no particular order."""

        def refuse(error: OSError) -> None:
            raise _unreadable(Path(error.filename or self.directory), error) from error

        for folder, _, files in os.walk(self.directory, onerror=refuse):
            for file in files:
                name = Path(folder, file).relative_to(self.directory).as_posix()
                status = self._status(name)
                if stat.S_ISREG(status.st_mode):
                    yield name, status.st_size

    def _status(self, file: str) -> os.stat_result:
        status = self._stat(file)
        self._stamps.note(file, status)
        return status

    def _stat(self, file: str) -> os.stat_result:
        path = self._path(file)
        try:
            return path.stat()
        except FileNotFoundError as error:
            if path.is_symlink():
                raise CheckpointError(
                    "the symlink leads nowhere", where=str(path), remedy="download the checkpoint again"
                ) from error
            raise _unreadable(path, error) from error
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _path(self, file: str) -> Path:
        check_name(file, where=str(self.directory))
        return self.directory / file


def read_range_into(path: Path, start: int, buffer: bytearray | memoryview) -> None:
    """Fill `buffer` with the bytes of the file at `path` from `start` on. Raises CheckpointError if it ends before."""
    # Plain reads, no memory map: mapped pages would count as resident memory of this process.
    view = memoryview(buffer).cast("B")
    filled = 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            # One call suffices but for tensors over 2 GiB, the most one read system call gives.
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise _too_short(path, start + len(view))
                filled += count
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def check_name(file: str, where: str) -> None:
    """Raise CheckpointError unless `file` is a plain relative name that stays inside the checkpoint."""
    # Names come from indexes and listings that others wrote, and end up in paths that we read and write. The native
    # Path also knows the drives and backslashes of the system that it would be a path on.
    path = Path(file)
    if path.anchor or ".." in path.parts or not path.parts:
        raise CheckpointError(
            f"the file name {file!r} leads out of the checkpoint",
            where=where,
            remedy="do not use this checkpoint; get it from its publisher",
        )


def _too_short(path: Path, end: int) -> CheckpointError:
    return CheckpointError(
        f"the file ends before byte {end}", where=str(path), remedy="download it again, it is truncated"
    )


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    remedy = remedy_for(error) if isinstance(error, OSError) else ""
    return CheckpointError(
        f"cannot be read ({reason})", where=str(path), remedy=remedy or "check that it exists and may be read"
    )
