"""Rename a finished directory to its target, or exchange it with an existing one.

Linux supports both as flags of `renameat2(2)`. Elsewhere, and on file systems without these flags, the exchange takes
three renames with a fixed spare name, so that `restore` can tell at any later time how far it got.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_AT_FDCWD = -100

# The system call is missing or forbidden in a sandbox, or the file system does not support the flag.
_CANNOT = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename with `flags`; return False, with nothing changed, if the system or file system does not support it."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):  # not Linux, or a C library older than the call
        return False
    result = library.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def rename_to_absent(source: Path, target: Path) -> None:
    """Rename the directory `source` to `target`, which must not exist. Raises OSError."""
    if not _renameat2(source, target, RENAME_NOREPLACE):
        # A plain rename of a directory can replace only an empty directory, so nothing can be lost.
        os.rename(source, target)


def exchange(fresh: Path, target: Path, spare: Path) -> None:
    """Exchange two directories, atomically if the system supports it. Raises OSError.

    Args:
        fresh: the finished directory; afterwards it holds the former `target`.
        target: the directory to replace.
        spare: an unused name on the same file system. While it exists, an exchange is half done.
    """
    if not _renameat2(fresh, target, RENAME_EXCHANGE):
        os.rename(target, spare)
        os.rename(fresh, target)
        os.rename(spare, fresh)


def restore(target: Path, spare: Path) -> None:
    """Undo an exchange that was interrupted after its first rename, the only moment when `target` is absent."""
    if os.path.lexists(spare) and not os.path.lexists(target):
        os.rename(spare, target)
