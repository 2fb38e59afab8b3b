"""Test that stages work ahead of one another within the memory budget."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkedit.demo import SMALL_DEMO
from qkedit.spectral.changes.low_rank import LowRankChange
from qkedit.spectral.suppression import Suppression
from qkedit.steering.engine import edited_weights as stream
from qkedit.steering.engine.pace import IN_FLIGHT_BYTES, Pace, pace_for
from qkedit.steering.engine.reading import StoredLayer, stored_layers
from qkedit.steering.engine.workers import Workers, workers
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions

MEBIBYTE = 1 << 20
CPU = torch.device("cpu")


@given(st.integers(1, 1 << 30), st.floats(0.1, 1))
def test_layers_in_flight_stay_within_the_budget(layer_bytes: int, share: float) -> None:
    tensor_bytes = max(1, int(layer_bytes * share))
    pace = pace_for(layer_bytes, tensor_bytes)
    assert pace == Pace() or pace.bytes_in_flight(layer_bytes, tensor_bytes) <= IN_FLIGHT_BYTES


@pytest.mark.parametrize(
    ("layer", "tensor", "expected"),
    [
        (1, 1, Pace(read=6, begun=1, edited=1)),
        (29, 26, Pace(read=6, begun=1, edited=1)),  # Qwen2-VL 7B
        (100, 50, Pace(begun=1, edited=1)),  # LLaVA 13B, with multi-head attention
        (144, 128, Pace(begun=1)),  # Qwen2-VL 72B
        (200, 200, Pace()),
    ],
)
def test_wide_models_have_fewer_layers_in_flight(layer: int, tensor: int, expected: Pace) -> None:
    assert pace_for(layer * MEBIBYTE, tensor * MEBIBYTE) == expected


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_stream_is_ordered_and_its_work_ahead_is_limited(ahead: int) -> None:
    begun: list[int] = []

    def begin(item: int) -> Callable[[], int]:
        begun.append(item)
        wait = pool.begin(lambda part: part * part, [item, item + 1])
        return lambda: sum(wait())

    with workers(CPU) as pool:
        for place, result in enumerate(pool.stream(begin, range(8), ahead)):
            assert result == place**2 + (place + 1) ** 2
            assert len(begun) == min(8, place + 1 + ahead)


def test_without_threads_no_work_is_begun_ahead() -> None:
    begun: list[int] = []
    stream = Workers(None).stream(lambda item: begun.append(item) or (lambda: item), range(3), ahead=1)
    assert next(stream) == 0
    assert begun == [0]


def test_leaving_the_block_drops_scheduled_work() -> None:
    """Scheduled work that has not started does not run after an interruption."""
    go, done = threading.Event(), []

    def call(item: int) -> None:
        assert go.wait(30)
        done.append(item)

    items = range(torch.get_num_threads() + 50)
    with workers(CPU) as pool:
        pool.begin(call, items)
        threading.Timer(0.05, go.set).start()  # after the block has been left
    assert len(done) < len(items)


def test_at_the_slowest_pace_a_layer_is_freed_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide models have layers of hundreds of megabytes, so that two at a time would be too many."""
    monkeypatch.setattr(stream, "pace_of", lambda plan: Pace())
    plan = plan_for(SMALL_DEMO, SteerOptions("all", "all", Suppression(1), device="cpu"))
    held: list[weakref.ref[bytearray]] = []

    class Watched(bytearray):
        """Bytes that support weak references."""

    factors: list[LowRankChange] = []

    def watched() -> Iterator[StoredLayer]:
        layers = stored_layers(plan)
        while True:
            deadline = time.monotonic() + 30  # a worker releases its work just after reporting the result
            while any(content() for content in held):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            stored = next(layers, None)
            if stored is None:
                return
            stored = replace(stored, contents={name: Watched(content) for name, content in stored.contents.items()})
            held.extend(weakref.ref(content) for content in stored.contents.values())
            yield stored
            del stored

    for edited in stream.edited_weights(watched(), plan, CPU, factored=True):
        # Keeping the factors does not keep the weights that were read.
        assert edited.factored is not None
        factors += edited.factored.heads.values()
        del edited
    assert len(held) == 2 * len(plan.layers) > 2
    assert len(factors) >= len(plan.layers)
