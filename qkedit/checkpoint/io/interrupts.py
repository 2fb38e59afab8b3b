"""Defer Ctrl-C, SIGTERM and SIGHUP to the end of a block that must not be interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# The signals by which a person, a scheduler and a closing terminal ask a process to end.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer interrupts until the block has ended; then the first one takes effect.

    Python handles signals in the main thread, so in other threads there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # An ignored signal stays ignored; None is a handler that was not set by Python.
    previous = {
        number: handler for number in INTERRUPTS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    try:
        for number in previous:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
