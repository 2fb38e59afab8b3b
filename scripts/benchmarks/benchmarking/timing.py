"""Measure times in turns, so that a drift of the machine affects all compared measurements equally."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """The seconds of every repetition of one measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, which is reported and used in ratios."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are written to JSON."""
        return {"median": self.median, "all": list(self.seconds)}


def in_turns(repeats: int, measurements: Mapping[str, Callable[[], Result]]) -> dict[str, list[Result]]:
    """Take every measurement once per round, in reverse order in every second round; return the results by name."""
    results: dict[str, list[Result]] = {name: [] for name in measurements}
    names = list(measurements)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            print(f"{name}, {turn + 1} of {repeats}", file=sys.stderr, flush=True)
            results[name].append(measurements[name]())
    return results


def seconds_of(action: Callable[[], object], finish: Callable[[], object] = lambda: None) -> float:
    """Return the seconds that `action` takes, `finish` included: a device's synchronisation, for instance."""
    finish()
    started = time.perf_counter()
    action()
    finish()
    return time.perf_counter() - started
