"""Write a report file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.whole_file import check_writable, write_whole
from qkedit.errors import UsageError


def check_target(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Refuse a path that could not be written to, before any work is done.

    Args:
        path: the path of a file, which may exist already.
        suffixes: the accepted endings of its name; an empty one accepts any name.
        option: the option that gave the path.

    Raises:
        UsageError: the name has another ending, or the directory does not exist.
        QkeditError: the system does not permit writing there.
    """
    path = _expanded(path)
    if not path.name.lower().endswith(suffixes):
        raise UsageError(
            f"{path.name!r} has an unknown ending", where=option, remedy=f"end the name in {' or '.join(suffixes)}"
        )
    with explained("write the file", path):
        if path.is_dir():
            raise UsageError(f"{path} is a directory", where=option, remedy="name a file in it")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"there is no directory {path.parent}", where=option, remedy="create it first")
    check_writable(path.absolute().parent, path)


def write_file(path: Path, content: bytes) -> None:
    """Write `content`, atomically replacing an earlier file of that name. Raises QkeditError."""
    write_whole(_expanded(path), content)


def printable(text: str) -> str:
    """Return text that UTF-8 can encode: bytes of a file name that are not UTF-8 become backslash escapes."""
    return text.encode(errors="backslashreplace").decode()


def _expanded(path: Path) -> Path:
    """Expand `~`, which a shell does not expand in `--csv=~/spectra.csv`."""
    return Path(os.path.expanduser(path))
