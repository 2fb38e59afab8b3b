"""Write a report file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from qkedit.errors import QkeditError, UsageError


def check_target(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Refuse a place that could not be written to, before any work is done. Raises UsageError."""
    path = _expanded(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path.name!r} is of no known kind", where=option, remedy=f"end the name in {' or '.join(suffixes)}"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory", where=option, remedy="name a file in it")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}", where=option, remedy="make it first")


def write_file(path: Path, content: bytes) -> None:
    """Write `content`, replacing an earlier file of that name in one step. Raises QkeditError."""
    path = _expanded(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise QkeditError(
            f"cannot be written: {error.strerror}", where=str(path), remedy="free space or name another place"
        ) from error


def printable(text: str) -> str:
    """Return text that UTF-8 can hold: of a directory's name, bytes that are no UTF-8 are spelled with backslashes."""
    return text.encode(errors="backslashreplace").decode()


def _expanded(path: Path) -> Path:
    """Expand `~`, which a shell leaves alone in `--csv=~/spectra.csv`."""
    return Path(os.path.expanduser(path))
