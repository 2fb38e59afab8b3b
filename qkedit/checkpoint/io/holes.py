"""Find the holes of a file: ranges of zeros that take no space on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def stretches(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Split [start, end) of an open file into stretches of data and of holes.

    If the system does not report holes, and beyond the file's end, everything counts as data.

    Yields:
        Start and end of each stretch, in order, and whether it is a hole.
    """
    position = start
    while position < end:
        data = _next(descriptor, position, os.SEEK_DATA) if hasattr(os, "SEEK_DATA") else position
        if data is None:  # no data follows: a hole up to the end of the file
            data = max(position, min(end, os.fstat(descriptor).st_size))
            if data == position:
                yield position, end, False
                return
        if data > position:
            yield position, min(data, end), True
            position = data
            continue
        hole = _next(descriptor, position, os.SEEK_HOLE) if hasattr(os, "SEEK_HOLE") else end
        # Another program may have truncated the file between two calls; the copy will find the end.
        hole = end if hole is None or hole <= position else min(hole, end)
        yield position, hole, False
        position = hole


def _next(descriptor: int, position: int, whence: int) -> int | None:
    """Return the next position of data or a hole, None if none follows, `position` if the system cannot tell."""
    try:
        return os.lseek(descriptor, position, whence)
    except OSError as error:
        return None if error.errno == errno.ENXIO else position
