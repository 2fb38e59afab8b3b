"""What a command does when it is asked to end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qkedit.checkpoint.io.interrupts import INTERRUPTS

EXIT_CODE = 130
# Seconds after the first request in which more of them change nothing. Clearing up takes less; a command that still
# hangs, at a file system that does not answer, can then be ended.
PATIENCE = 15


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise one KeyboardInterrupt in the block at Ctrl-C, SIGTERM or SIGHUP, so that it clears up and leaves.

    Who presses Ctrl-C twice, or a scheduler that signals every process of a group, must not cut the clearing off. A
    signal that was ignored from the start, as `nohup` and shells in the background have it, stays ignored.
    """
    first: list[float] = []

    def interrupt(signum: int, frame: object) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > PATIENCE:
            os._exit(EXIT_CODE)

    previous = {
        number: handler for number in INTERRUPTS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in previous:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def comes_of_interrupt(error: BaseException | None) -> bool:
    """Return whether an error is what became of a KeyboardInterrupt: Python wraps one that falls into an import."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
