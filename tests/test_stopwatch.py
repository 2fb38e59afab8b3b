"""Test the stopwatch: seconds add up by name, also in blocks that fail and in several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from qkedit import stopwatch as module
from qkedit.stopwatch import Stopwatch


def test_the_time_of_a_failing_block_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    with stopwatch("reading"):
        pass
    with pytest.raises(KeyError), stopwatch("reading"):
        raise KeyError
    assert stopwatch.seconds == {"reading": 3.0}


def test_seconds_of_several_threads_add_up() -> None:
    stopwatch = Stopwatch()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: stopwatch.add("writing", 0.5), range(1000)))
    assert stopwatch.seconds == {"writing": 500.0}
