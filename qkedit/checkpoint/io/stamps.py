"""Notice that another program wrote to a file, or put another one in its place, while it was read.

No lock keeps other programs from a model's directory, and reading it twice would take the time of a second copy. So
what the system says about each file is noted before it is read, and asked again when everything was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from qkedit.errors import CheckpointError


@dataclass(frozen=True)
class FileStamp:
    """What changes when a file is written to or replaced."""

    size: int
    modified: int  # nanoseconds
    identity: tuple[int, int]  # device and inode
    status_changed: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Take what `stat` said about a file."""
        return cls(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino), status.st_ctime_ns)

    def is_still(self, now: FileStamp) -> bool:
        """Whether the file has not been written to or replaced since.

        Inode numbers alone are not proof: some network and user-space file systems number a file anew each time. Nor
        is the time of the status, which a hard link to the file changes.
        """
        return (self.size, self.modified) == (now.size, now.modified) and (
            self.identity == now.identity or self.status_changed == now.status_changed
        )


class FileStamps:
    """The stamps of files when each was first seen; may be used from several threads."""

    def __init__(self) -> None:
        self._stamps: dict[str, FileStamp] = {}

    def note(self, file: str, status: os.stat_result) -> None:
        """Note the stamp of a file, unless one is known already."""
        self._stamps.setdefault(file, FileStamp.of(status))

    def check(self, status_of: Callable[[str], os.stat_result]) -> None:
        """Compare every stamp with what `status_of` says of the file now.

        Raises:
            CheckpointError: a file was written to or replaced; or whatever `status_of` raises.
        """
        for file, stamp in list(self._stamps.items()):
            if not stamp.is_still(FileStamp.of(status_of(file))):
                raise changed_meanwhile(file)


def changed_meanwhile(file: str | os.PathLike[str]) -> CheckpointError:
    """Return the error for a file that another program changed while it was read."""
    return CheckpointError(
        "was changed while it was read",
        where=os.fspath(file),
        remedy="run again when no other program writes to the model",
    )
