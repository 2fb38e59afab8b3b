"""Where a checkpoint's bytes come from (stub: signatures agreed on, bodies to come)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class CheckpointFiles(Protocol):
    """The files of one checkpoint, wherever they are; names are relative, with "/" separators."""

    name: str  # what the user called it: path name or "org/name"
    revision: str | None  # resolved commit on a hub, None for a directory

    def sizes(self) -> dict[str, int]:
        """Every file's size in bytes, by name."""
        ...

    def read(self, file: str, start: int, end: int) -> bytes:
        """Exactly bytes [start, end) of one file."""
        ...

    def local_path(self, file: str) -> Path:
        """A real path (symlinks resolved) that holds the file; downloads it where it is not local yet."""
        ...
