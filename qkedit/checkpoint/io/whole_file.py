"""Write one file whole or not at all: a reader sees the earlier file or the new one."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from qkedit.checkpoint.io.file_errors import explained


def write_whole(file: Path, content: bytes) -> None:
    """Put the content in the file's place in one step, with the permissions of any new file.

    Raises:
        QkeditError: the system refuses; an earlier file of that name stays, and nothing else is left.
    """
    # A name of its own, so that neither a long name nor another process gets into its way.
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
    """Make a file without a name in a directory, to learn before any work whether that can be done.

    Args:
        directory: which one; it must exist.
        where: what is to be written there, for the error.

    Raises:
        QkeditError: the system refuses.
    """
    with explained("write the file", where):
        tempfile.TemporaryFile(dir=directory).close()
