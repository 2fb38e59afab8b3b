"""Write a report file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.whole_file import check_writable, write_whole
from qkedit.errors import UsageError


def check_target(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Refuse a place that could not be written to, before any work is done.

    Args:
        path: of a file, which may exist.
        suffixes: one of which its name must end in; an empty one for any name.
        option: which one names the place.

    Raises:
        UsageError: the name does not fit, or there is no such directory.
        QkeditError: the system lets nothing be written there.
    """
    path = _expanded(path)
    if not path.name.lower().endswith(suffixes):
        raise UsageError(
            f"{path.name!r} is of no known kind", where=option, remedy=f"end the name in {' or '.join(suffixes)}"
        )
    with explained("write the file", path):
        if path.is_dir():
            raise UsageError(f"{path} is a directory", where=option, remedy="name a file in it")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"there is no directory {path.parent}", where=option, remedy="make it first")
    check_writable(path.absolute().parent, path)


def write_file(path: Path, content: bytes) -> None:
    """Write `content`, replacing an earlier file of that name in one step. Raises QkeditError."""
    write_whole(_expanded(path), content)


def printable(text: str) -> str:
    """Return text that UTF-8 can hold, where bytes of a file name that are not UTF-8 are spelled with backslashes."""
    return text.encode(errors="backslashreplace").decode()


def _expanded(path: Path) -> Path:
    """Expand `~`, which a shell leaves alone in `--csv=~/spectra.csv`."""
    return Path(os.path.expanduser(path))
