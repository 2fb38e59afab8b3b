"""Find a benchmark's published files below the directory that a user names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qkedit.errors import QkeditError


def find(data: Path, names: Sequence[str], places: Sequence[str]) -> Path | None:
    """Return the first of these files that is there, in `data` itself or in one of these folders below it."""
    candidates = (data / place / name for place in ("", *places) for name in names)
    return next((file for file in candidates if os.path.isfile(file)), None)


def required(data: Path, names: Sequence[str], places: Sequence[str], published: str) -> Path:
    """Return the file, or `data` itself where that is a file.

    Raises:
        QkeditError: it is not there; the error says where it is published.
    """
    if data.is_file():
        return data
    file = find(data, names, places)
    if file is None:
        what = f"{names[0]} is not there" if data.is_dir() else "there is no such directory"
        raise QkeditError(what, where=str(data), remedy=f"take it from {published}")
    return file
