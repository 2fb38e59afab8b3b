"""The server's log on standard error: one line per request, and each kind of problem at most once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TextIO

# asyncio's own logger reports connections that cannot be accepted.
_LOGGERS = ("uvicorn", "asyncio")
_SECONDS = 60.0


def log_to(stream: TextIO, *, requests: bool) -> None:
    """Write the server's log to a stream.

    Args:
        stream: the stream, usually standard error.
        requests: whether to write a line for every request.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(SeldomWarnings())
    for name in _LOGGERS:
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(logging.INFO if requests and name == "uvicorn" else logging.WARNING)


class SeldomWarnings(logging.Filter):
    """Passes a warning or error of each kind once a minute, with the number of similar ones omitted since.

    A client that can cause one can cause thousands, and a log that fills the disk is a failure too. A kind is a
    logger, a message without its values, and the type of the exception.

    Args:
        clock: returns seconds since an arbitrary start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._written: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, record.msg, record.exc_info[0] if record.exc_info else None)
        now = self._clock()
        last, left_out = self._written.get(kind, (-_SECONDS, 0))
        if now - last < _SECONDS:
            self._written[kind] = (last, left_out + 1)
            return False
        self._written[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like it since the last line)"
            record.args = ()
        return True
