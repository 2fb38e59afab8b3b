"""The server's log on standard error: requests in a line each, and every kind of trouble once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TextIO

# asyncio's own says that connections cannot be accepted.
_LOGGERS = ("uvicorn", "asyncio")
_SECONDS = 60.0


def log_to(stream: TextIO, *, requests: bool) -> None:
    """Let the server write its log to a stream.

    Args:
        stream: usually standard error.
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
    """Lets a warning or error of each kind through once a minute, with how many like it were left out since.

    Whoever can cause one can cause thousands, and a log that fills the disk is a failure of its own. A kind is a
    logger, a message before its values are put in, and the type of the exception.

    Args:
        clock: seconds that have passed, by any beginning.
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
