"""Explain in one sentence what the operating system refused, for which file, and the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike

from qkedit.errors import QkeditError

_CHECK_PERMISSIONS = "check its permissions or choose another place"

_REMEDIES = {
    errno.ESTALE: "check the network file system, then run again",
    errno.EINTR: "run again",
    errno.ENOSPC: "free some space or choose a place on another file system",
    errno.EDQUOT: "free some of the disk quota or choose a place on another file system",
    errno.EFBIG: "raise the file size limit or choose a place on another file system",
    errno.EACCES: _CHECK_PERMISSIONS,
    errno.EPERM: _CHECK_PERMISSIONS,
    errno.EROFS: "choose a place on a file system that is writable",
    errno.EBUSY: "choose a place that nothing else uses",
    errno.EIO: "check the disk and the system log, then run again",
    errno.ENOENT: "check that nothing else removes or renames it, then run again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOLCK: "choose a place on a file system that has file locks",
    errno.ENOSYS: "choose a place on another file system",
    errno.EOPNOTSUPP: "choose a place on another file system",
}


def remedy_for(error: OSError) -> str:
    """Return the remedy for the error by its number, or "" if there is none."""
    return _REMEDIES.get(error.errno or 0, "")


@contextmanager
def explained(doing: str, where: str | PathLike[str], *, remedy: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a QkeditError.

    Args:
        doing: the attempted action, as an infinitive: "read", "create".
        where: the file or directory.
        remedy: the remedy, if it does not follow from the system's error number.

    Raises:
        QkeditError: "where: cannot {doing}: no space left on device; free some space …."
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, doing, where, remedy=remedy) from error


def refusal(error: OSError, doing: str, where: str | PathLike[str], *, remedy: str = "") -> QkeditError:
    """Return the error for a refusal of the system; see `explained` for the arguments."""
    reason = error.strerror or str(error) or "the system refused"
    return QkeditError(
        f"cannot {doing}: {reason[0].lower()}{reason[1:]}", where=str(where), remedy=remedy or remedy_for(error)
    )


@contextmanager
def open_descriptor(path: str | PathLike[str], flags: int, mode: int = 0o666, *, doing: str = "open") -> Iterator[int]:
    """Open a file for the block, and report errors of closing it.

    A network file system may report a failed write only at `close`.

    Args:
        path: the file.
        flags: the flags of `os.open`.
        mode: the permissions of a new file.
        doing: the purpose of opening it, as an infinitive: "create".

    Raises:
        QkeditError: the file could not be opened or closed.
    """
    with explained(doing, path):
        descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    except BaseException:
        with suppress(OSError):  # the first failure is the one to report
            os.close(descriptor)
        raise
    with explained("close", path):
        os.close(descriptor)
