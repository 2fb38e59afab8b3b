"""Write one file atomically: a reader sees the earlier file or the new one."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained
from qkedit.errors import UsageError


def write_whole(file: Path, content: bytes) -> None:
    """Replace the file's content atomically, with the permissions of a new file.

    Raises:
        UsageError: a device or a pipe has that name: it would be gone, and a file in its place.
        QkeditError: the system refuses; an earlier file of that name is kept, and no other file is left.
    """
    _refuse_device(file)
    # A separate short name, so that neither a long name nor another process interferes.
    unfinished = file.with_name(f".{secrets.token_hex(8)}.part")
    with explained("write the file", file):
        try:
            with unfinished.open("xb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            unfinished.replace(file)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def check_writable(directory: Path, where: Path) -> None:
    """Check before any work that files can be written to a directory, by creating an unnamed one.

    Args:
        directory: an existing directory.
        where: the path of the file to be written, for the error.

    Raises:
        UsageError: the path is that of a device or a pipe, see `write_whole`.
        QkeditError: the system refuses.
    """
    _refuse_device(where)
    with explained("write the file", where):
        tempfile.TemporaryFile(dir=directory).close()


def _refuse_device(file: Path) -> None:
    with explained("write the file", file):
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            return
        # What /dev/stdout leads to may be a file.
        is_of_system = os.path.realpath(file.absolute().parent) == "/dev"
    if is_of_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError("is a device or a pipe, not a file", where=str(file), remedy="name a file")
