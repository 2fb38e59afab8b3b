"""Test that stages that work ahead of each other stop together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qkedit.api.editing import steer
from qkedit.errors import QkeditError
from qkedit.steering.engine import prefetch as pipeline
from qkedit.steering.engine.prefetch import prefetch


def test_items_come_in_order_and_the_producer_is_one_ahead() -> None:
    produced: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            produced.append(number)
            yield number

    with prefetch(numbers()) as items:
        for number in items:
            time.sleep(0.002)
            # One at the consumer, one in the queue, one at the producer.
            assert len(produced) <= number + 3
    assert produced == list(range(20))


def test_the_producer_starts_before_the_first_request() -> None:
    began = threading.Event()

    def numbers() -> Iterator[int]:
        began.set()
        yield 1

    with prefetch(numbers()):
        assert began.wait(30)


def test_with_depth_zero_items_are_produced_on_request() -> None:
    produced: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(5):
            produced.append(number)
            yield number

    with prefetch(numbers(), depth=0) as items:
        assert produced == []
        for number in items:
            assert produced == list(range(number + 1))


def test_an_exception_of_the_producer_comes_after_its_items() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError), prefetch(failing()) as items:
        seen.extend(items)
    assert seen == [1, 2]


@pytest.mark.parametrize("ahead", [0, 1])
def test_leaving_the_block_stops_and_closes_the_producer(ahead: int) -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with prefetch(endless(), ahead) as items:
        next(items)
    assert closed.is_set()


def test_waiting_for_a_hanging_producer_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PATIENCE", 0.05)
    answered = threading.Event()

    def numbers() -> Iterator[int]:
        assert answered.wait(30)
        yield 1

    with pytest.raises(KeyboardInterrupt), prefetch(numbers()):
        raise KeyboardInterrupt
    answered.set()


def test_no_stage_continues_after_a_failed_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the exception is still being handled, no worker reads or computes any more."""
    before = set(threading.enumerate())

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(QkeditError, match="no space left") as failure:
        steer(base, out=tmp_path / "edited", layers="all", fsync=False)
    assert failure.value.__traceback__ is not None
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()
