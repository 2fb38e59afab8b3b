"""Test the number of requests in progress, against a simulated engine."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.evaluation.runs.concurrency import FIRST, LARGEST, Concurrency


def answered_by_engine(
    concurrency: Concurrency, capacity: int, answers: int, seconds: float = 1.0
) -> tuple[float, list[int]]:
    """Simulate an engine that works on `capacity` requests at a time, each for `seconds`, and queues the others.

    Return the time of the last answer, and the allowed number of requests at each answer.
    """
    now, sent, numbers = 0.0, 0, []
    slots = [0.0] * capacity  # the time at which each place becomes free
    ends: list[float] = []
    while len(numbers) < answers:
        while sent < answers and len(ends) < concurrency.allowed:
            begin = max(now, heapq.heappop(slots))
            heapq.heappush(slots, begin + seconds)
            heapq.heappush(ends, begin + seconds)
            sent += 1
        now = heapq.heappop(ends)
        concurrency.answered(now)
        numbers.append(concurrency.allowed)
    return now, numbers


@pytest.mark.parametrize("capacity", [1, 3, 8, 20, 64, 256])
def test_the_measured_number_fills_the_engine_without_long_queues(capacity: int) -> None:
    seconds, numbers = answered_by_engine(Concurrency(), capacity, 20_000)
    settled = numbers[-1]
    assert numbers[-5_000:] == [settled] * 5_000
    # A number below the capacity leaves the engine partly idle; one above twice the capacity only queues.
    assert min(FIRST, capacity) <= settled <= max(FIRST, 2 * capacity)
    assert settled >= 0.9 * capacity or capacity < FIRST
    assert seconds <= 1.15 * 20_000 / capacity + 20


def test_a_short_run_keeps_the_first_number() -> None:
    _, numbers = answered_by_engine(Concurrency(), 256, FIRST + 8)
    assert set(numbers) == {FIRST}


def test_a_fixed_number_is_kept() -> None:
    _, numbers = answered_by_engine(Concurrency(5), 64, 2_000)
    assert set(numbers) == {5}


def test_refusals_halve_the_number_once_and_answers_raise_it_again() -> None:
    concurrency = Concurrency(32)
    for _ in range(32):  # all requests in progress
        concurrency.refused()
    assert concurrency.allowed == 16
    concurrency.refused()
    assert concurrency.allowed == 8
    numbers = []
    for number in range(1_000):
        concurrency.answered(float(number))
        numbers.append(concurrency.allowed)
    assert sorted(numbers) == numbers
    assert numbers[-1] == 16  # the number that was last refused is not tried again


@given(st.lists(st.one_of(st.none(), st.floats(0, 10)), max_size=400), st.one_of(st.none(), st.integers(1, LARGEST)))
def test_at_least_one_request_is_always_allowed(events: list[float | None], fixed: int | None) -> None:
    concurrency, now = Concurrency(fixed), 0.0
    for event in events:
        if event is None:
            concurrency.refused()
        else:
            now += event
            concurrency.answered(now)
        assert 1 <= concurrency.allowed <= (LARGEST if fixed is None else fixed)
