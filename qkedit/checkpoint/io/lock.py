"""The lock between runs of qkedit: advisory, on an open file, released when the process ends."""

from __future__ import annotations

import errno
import fcntl


def try_lock(descriptor: int) -> bool:
    """Lock an open file against other processes for as long as it is open, without waiting.

    Returns:
        False if another process holds the lock.

    Raises:
        OSError: the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # EACCES on some network file systems
            return False
        raise
    return True
