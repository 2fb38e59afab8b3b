"""Defer Ctrl-C, SIGTERM and SIGHUP to the end of a block, and make up for the clean-ups that one of them skipped.

Python handles a signal between any two instructions of the main thread: also between the block of a `with` statement
and the first instruction of `__exit__`, which is skipped then. A clean-up that must not be skipped is listed here
before it is due; whoever leaves a block further out calls it.
"""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# The signals by which a person, a scheduler and a closing terminal ask a process to end.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CleanUp = Callable[[], object]
# With the thread that listed it; blocks of one thread are nested, those of several are independent.
_listed: list[tuple[int, CleanUp]] = []


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer interrupts until the block has ended; then the first one takes effect.

    Python handles signals in the main thread, so in other threads there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    defers = True
    # An ignored signal stays ignored; None is a handler that was not set by Python.
    previous = {
        number: handler for number in INTERRUPTS if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def defer(number: int, frame: object) -> None:
        if defers:
            came.append(number)
        else:  # an interrupt ended the loop that restores the handlers
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        for number in previous:
            signal.signal(number, defer)
        yield
    finally:
        defers = False
        for number, handler in previous.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def list_clean_up(clean_up: CleanUp) -> None:
    """List a clean-up of this thread, to be called at the latest when the process ends; it may be called twice."""
    _listed.append((threading.get_ident(), clean_up))


def unlist_clean_up(clean_up: CleanUp) -> None:
    """Take a clean-up off the list, and call those that this thread has listed since: they were skipped.

    Nothing happens if it is not on the list.
    """
    own = (threading.get_ident(), clean_up)
    if own not in _listed:
        return
    for entry in reversed(_listed[_listed.index(own) + 1 :]):
        if entry[0] == own[0]:
            _call(entry)
    _listed.remove(own)


def _call(entry: tuple[int, CleanUp]) -> None:
    with suppress(Exception):  # the interrupt is reported; the next run removes the rest
        entry[1]()
    _listed.remove(entry)  # only now: a second interrupt leaves it on the list


@atexit.register
def _call_all() -> None:
    for entry in reversed(_listed[:]):
        _call(entry)
