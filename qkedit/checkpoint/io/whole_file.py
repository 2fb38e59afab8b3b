"""Write one file atomically: a reader sees the earlier file or the new one."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained


def write_whole(file: Path, content: bytes) -> None:
    """Replace the file's content atomically, with the permissions of a new file.

    Raises:
        QkeditError: the system refuses; an earlier file of that name is kept, and no other file is left.
    """
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
        QkeditError: the system refuses.
    """
    with explained("write the file", where):
        tempfile.TemporaryFile(dir=directory).close()
