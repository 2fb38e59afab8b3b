"""Progress where nobody watches a terminal, in a log or a pipeline: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds until the first line, so that a short run says nothing, and between two of them.
FIRST, BETWEEN = 10.0, 60.0


class ProgressLines:
    """Says how many of a known number are done, and about how long the rest will take.

    Args:
        what: is counted: "answers".
        write: takes a line.
        clock: tells the time in seconds.
    """

    def __init__(self, what: str, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._write = write
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Take notice of how many are done; the first call says how many were done before this run."""
        now = self._clock()
        if self._start is None:
            self._start, self._next = (now, done), now + FIRST
            return
        began, before = self._start
        if now < self._next or done >= total:
            return
        self._next = now + BETWEEN
        share = f"{self._what}: {done} of {total} ({done / total:.0%})"
        left = f", about {in_words((now - began) * (total - done) / (done - before))} left" if done > before else ""
        self._write(f"{share}{left}")


def in_words(seconds: float) -> str:
    """Return a length of time as people say it: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
