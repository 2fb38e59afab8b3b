"""Handle requests to end a command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qkedit.checkpoint.io.interrupts import INTERRUPTS, list_clean_up, unlist_clean_up

EXIT_CODE = 130
# Seconds after the first request in which further ones are ignored. Cleaning up takes less; a command that still
# hangs, for example on an unresponsive file system, can then be ended.
PATIENCE = 15


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise one KeyboardInterrupt in the block at Ctrl-C, SIGTERM or SIGHUP, so that it cleans up and ends.

    Clean-ups that the interrupt skipped are done at the end of the block. A second Ctrl-C, or a scheduler that signals
    every process of a group, must not interrupt the clean-up. A signal that was ignored from the start, as under
    `nohup` and in background shells, stays ignored.
    """
    first: list[float] = []

    def interrupt(signum: int, frame: object) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > PATIENCE:
            os._exit(EXIT_CODE)

    def end() -> None:
        """Mark on the list of clean-ups where those of the block begin."""

    previous = {
        number: handler for number in INTERRUPTS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        list_clean_up(end)
        for number in previous:
            signal.signal(number, interrupt)
        yield
    finally:
        try:
            unlist_clean_up(end)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def comes_of_interrupt(error: BaseException | None) -> bool:
    """Return whether an error comes from a KeyboardInterrupt: Python wraps one that occurs during an import."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
