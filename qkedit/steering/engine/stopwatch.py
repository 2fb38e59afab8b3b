"""Seconds by station, for the report; stations run side by side, so they may add up to more than the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds under names; safe to use from several threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, station: str) -> Iterator[None]:
        """Count the time inside the `with` block towards `station`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(station, time.perf_counter() - started)

    def add(self, station: str, seconds: float) -> None:
        """Count seconds that were taken elsewhere."""
        with self._lock:
            self.seconds[station] = self.seconds.get(station, 0.0) + seconds
