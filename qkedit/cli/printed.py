"""What commands print alike: which files were written, and numbers with their nouns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def names_of(*files: Path | None) -> list[str]:
    """Return the names of files for a JSON document; None is one that was not asked for."""
    return [str(file) for file in files if file is not None]


def written_lines(names: Sequence[str]) -> list[str]:
    """Return what tells, set off by an empty line, which files were written: nothing when none were."""
    return ["", f"Written: {', '.join(names)}"] if names else []
