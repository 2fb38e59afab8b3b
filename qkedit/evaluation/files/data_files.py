"""Find a benchmark's published files below the directory that a user names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qkedit.errors import QkeditError, UsageError


def find(data: Path, names: Sequence[str], places: Sequence[str]) -> Path | None:
    """Return the first of these files that exists, in `data` itself or in one of these folders below it."""
    candidates = (data / place / name for place in ("", *places) for name in names)
    return next((file for file in candidates if os.path.isfile(file)), None)


def required(data: Path, names: Sequence[str], places: Sequence[str], published: str) -> Path:
    """Return the file, or `data` itself if it is a file.

    Raises:
        QkeditError: the file does not exist; the error says where it is published.
    """
    if data.is_file():
        return data
    file = find(data, names, places)
    if file is None:
        what = f"there is no {names[0]}" if data.is_dir() else "there is no such directory"
        raise QkeditError(what, where=str(data), remedy=f"take it from {published}")
    return file


@dataclass(frozen=True)
class FilePerSplit:
    """The files of a benchmark that is published as one file per split.

    Attributes:
        names: the possible names of each split's file.
        places: the folders below the user's directory that may hold them.
        published: the place where they are published.
    """

    names: Mapping[str, Sequence[str]]
    places: Sequence[str]
    published: str

    def splits_in(self, data: Path) -> tuple[str, ...]:
        """Return the splits whose files are below `data`."""
        return tuple(split for split, names in self.names.items() if find(data, names, self.places))

    def of(self, data: Path, split: str | None) -> Path:
        """Return the file of a split, or `data` itself if it is a file.

        Raises:
            UsageError: there is no such split, or none is named.
            QkeditError: the file does not exist; the error says where it is published.
        """
        if data.is_file():
            return data
        if split is None or split not in self.names:
            what = "no split is given" if split is None else f"there is no split {split!r}"
            raise UsageError(what, where="--split", remedy=f"choose among {', '.join(self.names)}")
        return required(data, self.names[split], self.places, self.published)
