"""Where a checkpoint's bytes come from: one protocol, and the directory on disk that implements it.

A source knows names, sizes and byte ranges, nothing of what is inside. `qkedit.checkpoint.hub.files` has the other
implementation, which fetches ranges of a repository on the hub.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Protocol

from qkedit.checkpoint.io.file_errors import remedy_for
from qkedit.checkpoint.io.stamps import FileStamps
from qkedit.errors import CheckpointError

_COMMIT = re.compile("[0-9a-f]{40}")


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

    def passed_over(self) -> dict[str, str]:
        """What is not in `sizes` though it has a name, and why: broken links, directories that may not be read …"""
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

    A hub cache's snapshot is such a directory too, known by its id and commit: its symlinks to blobs are followed for
    reading and resolved in `local_path`, so that nobody writes through them. Symlinks to directories are not followed,
    and hidden directories (`.git/`, `.cache/`) are not looked into: they are a tool's own records.

    Args:
        directory: where the files are.
        name: what reports and manifests call it; by default the hub id of a snapshot, else the directory's own name,
            so that the manifest does not depend on where the directory lies.
        follows_links: whether its links may lead anywhere, see `leads_out`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], name: str | None = None, *, follows_links: bool = False
    ) -> None:
        self.directory = Path(directory)
        real = Path(os.path.realpath(self.directory))
        repository, commit = snapshot_of(real) or (real.name, None)
        self.name = name or repository
        self.revision = commit if name is None else None
        self._follows_links = follows_links
        # Not resolved: a link in the place of the blobs may lead anywhere.
        self._roots = (real, *((real.parent.parent / "blobs",) if commit else ()))
        self._stamps = FileStamps()

    def __repr__(self) -> str:
        """Name the directory."""
        return f"LocalFiles({str(self.directory)!r})"

    def sizes(self) -> dict[str, int]:
        """Every regular file's size in bytes, by name."""
        return {name: found for name, found in self._entries() if isinstance(found, int)}

    def passed_over(self) -> dict[str, str]:
        """What is not in `sizes` though it has a name, and why."""
        return {name: found for name, found in self._entries() if isinstance(found, str)}

    def leads_out(self, file: str) -> Path | None:
        """Return where a file really is, if a link leads out of the checkpoint and its cache's blobs; else None.

        A stranger's checkpoint may hold a link to a private file, which must not come into an output unasked.
        """
        real = self.local_path(file)
        inside = self._follows_links or any(real.is_relative_to(root) for root in self._roots)
        return None if inside else real

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

    def _entries(self) -> list[tuple[str, int | str]]:
        """The name of every file with its size, and of what is none with the reason, sorted by name."""
        closed: list[str] = []

        def note(error: OSError) -> None:
            path = Path(error.filename or self.directory)
            if not isinstance(error, PermissionError) or path == self.directory:
                raise _unreadable(path, error) from error
            closed.append(path.relative_to(self.directory).as_posix())

        found: list[tuple[str, int | str]] = []
        for folder, directories, files in os.walk(self.directory, onerror=note):
            directories[:] = [name for name in directories if not name.startswith(".")]
            for name in (*files, *directories):
                path = Path(folder, name)
                if name in files or path.is_symlink():
                    file = path.relative_to(self.directory).as_posix()
                    found.append((file, self._size_or_reason(file)))
        return sorted(found + [(name, "a directory that may not be read") for name in closed])

    def _size_or_reason(self, file: str) -> int | str:
        try:
            status = self._status(file)
        except CheckpointError:
            if (self.directory / file).is_symlink():
                return "a link that leads nowhere"
            raise
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        return "a link to a directory" if stat.S_ISDIR(status.st_mode) else "not a file"

    def _status(self, file: str) -> os.stat_result:
        status = self._stat(file)
        # What is in a directory that a link leads to is not read, so it may change.
        if stat.S_ISREG(status.st_mode):
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


def snapshot_of(directory: Path) -> tuple[str, str] | None:
    """Return id and commit of a snapshot in a hub's cache, `models--org--name/snapshots/COMMIT`; else None."""
    repository = directory.parent.parent.name
    if not (_COMMIT.fullmatch(directory.name) and directory.parent.name == "snapshots"):
        return None
    if not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), directory.name


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
