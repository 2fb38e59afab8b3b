"""Limits for one input: time by an alarm, memory by the process's peak, and the places of writes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from fuzzing.target import Finding

_MEGABYTE = 1 << 20
PATIENCE = 4


class Hang(BaseException):
    """Raised if an input takes too long; no handler in qkedit may catch it as an error."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in the main thread after so many seconds of CPU time, or four times as many of wall time.

    Wall time alone would report inputs that other work on the machine has delayed.
    """
    started, worked = time.monotonic(), time.process_time()

    def end(number: int, frame: FrameType | None) -> None:
        left = seconds - (time.process_time() - worked)
        if left > 0 and time.monotonic() - started < PATIENCE * seconds:
            signal.setitimer(signal.ITIMER_REAL, max(left, seconds / 10))
            return
        raise Hang

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def peak_megabytes() -> int:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // _MEGABYTE


def held_megabytes() -> int:
    """Return the present memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // _MEGABYTE


def limit_memory(megabytes: int) -> None:
    """Make allocations fail far above the present size, to protect the machine."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * _MEGABYTE, hard))


class Writes:
    """Records every file outside given directories that this process opens for writing, renames, creates or removes.

    Python reports such calls through audit hooks, which cannot be removed; only one instance should be created.
    """

    _EVENTS: ClassVar[dict[str, int]] = {
        "os.rename": 2,
        "os.remove": 1,
        "os.mkdir": 1,
        "os.rmdir": 1,
        "os.link": 2,
        "os.symlink": 2,
    }

    def __init__(self, *allowed: Path) -> None:
        self._allowed = tuple(os.path.realpath(directory) for directory in allowed)
        self._found: list[str] = []
        sys.addaudithook(self._hear)

    def check(self) -> None:
        """Raise Finding if anything was written elsewhere since the last call."""
        if self._found:
            found, self._found = self._found, []
            raise Finding("outside", f"written outside the working directory: {found[:5]!a}")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._note(path)
        elif event in self._EVENTS:
            for path in arguments[: self._EVENTS[event]]:
                self._note(path)

    def _note(self, path: Any) -> None:
        # Descriptors, and names below an open directory, were checked at the opening.
        if not isinstance(path, str | bytes) or not os.path.isabs(path):
            return
        real = os.path.realpath(os.fsdecode(path))
        if not real.startswith((*self._allowed, "/dev/", "/proc/")) and "__pycache__" not in real:
            self._found.append(real)
