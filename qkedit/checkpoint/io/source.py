"""The source of a checkpoint's bytes: a protocol, and its implementation for a directory on disk.

A source has names, sizes and byte ranges, and does not interpret contents. `qkedit.checkpoint.hub.files` has the
other implementation, which fetches ranges from a repository on the hub.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Protocol

from qkedit.checkpoint.io.file_errors import remedy_for
from qkedit.checkpoint.io.stamps import FileStamps
from qkedit.errors import CheckpointError, read_failure

_COMMIT = re.compile("[0-9a-f]{40}")


class CheckpointFiles(Protocol):
    """The files of one checkpoint, wherever they are; names are relative, with "/" separators.

    Every method may be called from several threads. Failures are QkeditErrors, never OSErrors.
    """

    @property
    def name(self) -> str:
        """The name that the user gave: a directory's name, "org/name" or "demo"."""
        ...

    @property
    def revision(self) -> str | None:
        """The resolved commit on a hub; None for a directory."""
        ...

    def sizes(self) -> dict[str, int]:
        """The size of every file in bytes, by name, sorted."""
        ...

    def passed_over(self) -> dict[str, str]:
        """Entries that are not in `sizes`, with the reason: broken links, unreadable directories …"""
        ...

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return exactly bytes [start, end) of one file: for headers and configs; tensors use `read_into`."""
        ...

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill the whole `buffer` with the bytes of one file, beginning at `start`, without an intermediate copy.

        Args:
            file: a name from `sizes`.
            start: the first byte, absolute in the file.
            buffer: writable and contiguous, of any item type; its length in bytes is the number of bytes read.
        """
        ...

    def local_path(self, file: str) -> Path:
        """Return a real path (symlinks resolved) of the file, downloading it if it is not local yet."""
        ...

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to or replaced since it was first read."""
        ...


class LocalFiles:
    """A checkpoint in a directory.

    A snapshot in a hub cache is such a directory too, identified by its id and commit. Its symlinks to blobs are
    followed for reading and resolved in `local_path`, so that nobody writes through them. Symlinks to directories are
    not followed, and hidden directories (`.git/`, `.cache/`) are ignored, because they belong to tools.

    Args:
        directory: the directory of the files.
        name: the name in reports and manifests; by default the hub id of a snapshot, else the directory's own name,
            so that the manifest does not depend on the location of the directory.
        follows_links: whether its links may point anywhere, see `leads_out`.
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
        # Not resolved: a link in place of the blobs may point anywhere.
        self._roots = (real, *((real.parent.parent / "blobs",) if commit else ()))
        self._stamps = FileStamps()

    def __repr__(self) -> str:
        """Show the directory."""
        return f"LocalFiles({str(self.directory)!r})"

    def sizes(self) -> dict[str, int]:
        """The size of every regular file in bytes, by name."""
        return {name: found for name, found in self._entries() if isinstance(found, int)}

    def passed_over(self) -> dict[str, str]:
        """Entries that are not in `sizes`, with the reason."""
        return {name: found for name, found in self._entries() if isinstance(found, str)}

    def leads_out(self, file: str) -> Path | None:
        """Return the real path of a file if a link points outside the checkpoint and its cache's blobs, else None.

        An untrusted checkpoint may hold a link to a private file, which must not get into an output.
        """
        real = self.local_path(file)
        inside = self._follows_links or any(real.is_relative_to(root) for root in self._roots)
        return None if inside else real

    def size(self, file: str) -> int:
        """Return the size of one file in bytes. Raises CheckpointError if it does not exist."""
        return self._status(file).st_size

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return exactly bytes [start, end) of one file. Raises CheckpointError if the file ends before."""
        # The size is checked first: a header with a false length must not make us allocate that much memory.
        if not 0 <= start <= end <= self._status(file).st_size:
            raise _too_short(self.directory / file, end)
        buffer = bytearray(end - start)
        self.read_into(file, start, buffer)
        return bytes(buffer)

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer`, beginning at `start`. Raises CheckpointError if the file ends before."""
        read_range_into(self._path(file), start, buffer)

    def local_path(self, file: str) -> Path:
        """Return the file's real path. Raises CheckpointError if it does not exist."""
        try:
            return Path(os.path.realpath(self._path(file), strict=True))
        except (OSError, ValueError) as error:
            raise _unreadable(self.directory / file, error) from error

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to, replaced or removed since it was first read."""
        self._stamps.check(self._stat)

    def _entries(self) -> list[tuple[str, int | str]]:
        """Return the name of every file with its size, and of every other entry with a reason, sorted by name."""
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
        return sorted(found + [(name, "an unreadable directory") for name in closed])

    def _size_or_reason(self, file: str) -> int | str:
        try:
            status = self._status(file)
        except CheckpointError:
            if (self.directory / file).is_symlink():
                return "a broken link"
            raise
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        return "a link to a directory" if stat.S_ISDIR(status.st_mode) else "not a file"

    def _status(self, file: str) -> os.stat_result:
        status = self._stat(file)
        # The contents of a linked directory are not read, so they may change.
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
                    "the symlink is broken", where=str(path), remedy="download the checkpoint again"
                ) from error
            raise _unreadable(path, error) from error
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    def _path(self, file: str) -> Path:
        check_name(file, where=str(self.directory))
        return self.directory / file


def read_range_into(path: Path, start: int, buffer: bytearray | memoryview) -> None:
    """Fill `buffer` with the bytes of a file, beginning at `start`. Raises CheckpointError if the file ends before."""
    # Plain reads instead of a memory map: mapped pages would count as resident memory of this process.
    view = memoryview(buffer).cast("B")
    filled = 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            # One call suffices except for tensors over 2 GiB, the limit of one read system call.
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise _too_short(path, start + len(view))
                filled += count
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def snapshot_of(directory: Path) -> tuple[str, str] | None:
    """Return id and commit if the directory is a snapshot in a hub cache, `models--org--name/snapshots/COMMIT`."""
    repository = directory.parent.parent.name
    if not (_COMMIT.fullmatch(directory.name) and directory.parent.name == "snapshots"):
        return None
    if not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), directory.name


def directories_of(*sources: CheckpointFiles) -> list[Path]:
    """Return the directories that are read and the targets of their links: no output may replace any of them."""
    local = [files for files in sources if isinstance(files, LocalFiles)]
    return [files.directory for files in local] + [files.local_path(file) for files in local for file in files.sizes()]


def check_name(file: str, where: str) -> None:
    """Raise CheckpointError unless `file` is a plain relative name that stays inside the checkpoint."""
    # Names come from untrusted indexes and listings, and end up in paths that we read and write. The native Path also
    # handles the drives and backslashes of the system.
    path = Path(file)
    if path.anchor or ".." in path.parts or not path.parts:
        raise CheckpointError(
            f"the file name {file!r} points outside the checkpoint",
            where=where,
            remedy="do not use this checkpoint; get it from its publisher",
        )


def _too_short(path: Path, end: int) -> CheckpointError:
    return CheckpointError(
        f"the file ends before byte {end}", where=str(path), remedy="download it again: it is truncated"
    )


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    remedy = remedy_for(error) if isinstance(error, OSError) else ""
    return CheckpointError(
        f"cannot be read ({read_failure(error)})",
        where=str(path),
        remedy=remedy or "check that it exists and is readable",
    )
