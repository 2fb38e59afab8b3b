"""Put a finished directory in its place by one rename, or exchange it with the one that is there.

Linux has both as flags of `renameat2(2)`. Elsewhere, and on file systems that know no flags, the exchange takes
three renames with a fixed spare name, so that `restore` can tell at any later moment how far it came.
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

# The system call is missing, forbidden in a sandbox, or the file system does not know the flag.
_CANNOT = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename with `flags`; False, with nothing done, where the system or the file system cannot."""
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
    """Rename the directory `source` to `target`, where nothing may stand. Raises OSError."""
    if not _renameat2(source, target, RENAME_NOREPLACE):
        # A plain rename of a directory replaces nothing but an empty directory, so nothing can be lost.
        os.rename(source, target)


def exchange(fresh: Path, target: Path, spare: Path) -> None:
    """Exchange two directories; atomic where the system can. Raises OSError.

    Args:
        fresh: the finished directory; holds the former `target` afterwards.
        target: the directory to replace.
        spare: a free name on the same file system. While it exists, an exchange is half done.
    """
    if not _renameat2(fresh, target, RENAME_EXCHANGE):
        os.rename(target, spare)
        os.rename(fresh, target)
        os.rename(spare, fresh)


def restore(target: Path, spare: Path) -> None:
    """Undo an exchange that was cut off after its first rename, the only moment when `target` is absent."""
    if os.path.lexists(spare) and not os.path.lexists(target):
        os.rename(spare, target)
