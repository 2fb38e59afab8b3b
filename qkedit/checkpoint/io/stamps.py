"""Detect that another program wrote to a file, or replaced it, while it was read.

No lock protects a model's directory from other programs, and reading it twice would take as long as a second copy. So
the status of each file is recorded before it is read, and compared when everything has been read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from qkedit.errors import CheckpointError


@dataclass(frozen=True)
class FileStamp:
    """The status fields that change when a file is written to or replaced."""

    size: int
    modified: int  # nanoseconds
    identity: tuple[int, int]  # device and inode
    status_changed: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Take the stamp from the result of `stat`."""
        return cls(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino), status.st_ctime_ns)

    def is_still(self, now: FileStamp) -> bool:
        """Return whether the file has not been written to or replaced since.

        A changed inode alone is not proof: some network and user-space file systems number a file anew each time.
        Nor is a changed status time, which a hard link to the file also changes.
        """
        return (self.size, self.modified) == (now.size, now.modified) and (
            self.identity == now.identity or self.status_changed == now.status_changed
        )


class FileStamps:
    """The stamps of files at their first use; safe to use from several threads."""

    def __init__(self) -> None:
        self._stamps: dict[str, FileStamp] = {}

    def note(self, file: str, status: os.stat_result) -> None:
        """Record the stamp of a file, unless it has one already."""
        self._stamps.setdefault(file, FileStamp.of(status))

    def check(self, status_of: Callable[[str], os.stat_result]) -> None:
        """Compare every stamp with the file's present status from `status_of`.

        Raises:
            CheckpointError: a file was written to or replaced. Errors of `status_of` are passed on.
        """
        for file, stamp in list(self._stamps.items()):
            if not stamp.is_still(FileStamp.of(status_of(file))):
                raise changed_meanwhile(file)


def changed_meanwhile(file: str | os.PathLike[str]) -> CheckpointError:
    """Return the error for a file that another program changed while it was read."""
    return CheckpointError(
        "was changed while it was read",
        where=os.fspath(file),
        remedy="run again when no other program is writing to the model",
    )
