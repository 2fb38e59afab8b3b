"""Test processes that end, differ or send invalid data: one-sentence errors without output."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.processes import connection as connections
from qkedit.steering.processes.connection import first_of, others_of
from qkedit.steering.processes.launch import Launch, launched
from qkedit.steering.processes.messages import fingerprint
from qkedit.steering.processes.sharing import hand_over_edits, shared_edits
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions, SteerOptions

FIRST, SECOND = Launch(0, 2, 0), Launch(1, 2, 1)


@pytest.fixture(autouse=True)
def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(connections, "MEETING", 20)
    monkeypatch.setattr(connections, "PATIENCE", 20)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))


@pytest.fixture(scope="module")
def plan() -> SteerPlan:
    return plan_for(SMALL_DEMO, SteerOptions("1-4"))


def edits_of(plan: SteerPlan) -> Iterator[EditedTensor]:
    return edited_weights(stored_layers(plan), plan, torch.device("cpu"), factored=True)


@contextmanager
def another_process(work: Callable[[], Any]) -> Iterator[None]:
    """Run another process as a thread of this process."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(20)
    assert not thread.is_alive()
    assert not failures


def answer(message: dict[str, Any], contents: tuple[memoryview, ...] = ()) -> None:
    """Connect as the second process, send a message, and wait until the first one has ended."""
    with first_of(SECOND) as first:
        first.send(message, contents)
        with pytest.raises(connections.LostConnectionError):
            first.receive()


def ended() -> None:
    with first_of(SECOND):
        pass


def half_a_layer() -> None:
    with first_of(SECOND) as first:
        first._socket.sendall(connections._LENGTH.pack(1000) + b"{")


@pytest.mark.parametrize("work", [ended, half_a_layer])
def test_a_dead_process_is_one_sentence_and_no_output(
    plan: SteerPlan, tmp_path: Path, work: Callable[[], None]
) -> None:
    with another_process(work), pytest.raises(QkeditError) as caught:
        run_plan(plan, OutputOptions(tmp_path / "out", fsync=False), launch=FIRST)
    assert str(caught.value) == (
        "process 1 of 2 (counted from 0): ended before its layers were edited; "
        "read the launcher's messages about it, and run again."
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"error": {"what": "is odd", "where": "layer 2", "remedy": "", "exit_code": 2}}, "layer 2: is odd"),
        ({"plan": "another", "tensor": "?"}, "other files, options or versions"),
    ],
)
def test_an_error_of_another_process_ends_the_run(
    plan: SteerPlan, tmp_path: Path, message: dict[str, Any], said: str
) -> None:
    with another_process(lambda: answer(message)), pytest.raises(QkeditError, match=said) as caught:
        run_plan(plan, OutputOptions(tmp_path / "out", fsync=False), launch=FIRST)
    assert caught.value.exit_code == message.get("error", {}).get("exit_code", 1)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_process_interrupts_the_first_one(plan: SteerPlan, tmp_path: Path) -> None:
    with another_process(lambda: answer({"interrupted": True})), pytest.raises(KeyboardInterrupt):
        run_plan(plan, OutputOptions(tmp_path / "out", fsync=False), launch=FIRST)
    assert os.listdir(tmp_path) == []


def test_an_interrupt_after_a_dead_process_is_reported_as_the_dead_process(plan: SteerPlan) -> None:
    def interrupted(part: SteerPlan) -> Iterator[EditedTensor]:
        gone.wait(20)
        raise KeyboardInterrupt
        yield

    gone = threading.Event()

    def killed() -> None:
        with first_of(SECOND) as first:
            first.send({"plan": "what was under way"})
        gone.set()

    with another_process(killed), pytest.raises(QkeditError, match=r"process 1 of 2 .* ended before its layers"):
        next(shared_edits(plan, FIRST, interrupted))


@pytest.mark.parametrize("error", [UsageError("is odd", where="here"), MemoryError(), ValueError("odd")])
def test_a_failing_process_reports_its_error_before_it_ends(plan: SteerPlan, error: Exception) -> None:
    """The error is also raised in the process itself, for its exit code."""

    def failing() -> SteerPlan:
        raise error

    def helper() -> None:
        with pytest.raises(type(error)):
            hand_over_edits(SECOND, failing, edits_of)

    said = {UsageError: "here: is odd", MemoryError: "memory ran out", ValueError: "unexpected ValueError: odd"}
    with another_process(helper), pytest.raises(QkeditError, match=said[type(error)]):
        list(shared_edits(plan, FIRST, edits_of))


def test_the_end_of_the_first_process_ends_the_others(plan: SteerPlan) -> None:
    def helper() -> None:
        with pytest.raises(QkeditError, match="process 0 of 2"):
            hand_over_edits(SECOND, lambda: plan, edits_of)

    def first() -> None:
        with others_of(FIRST):
            pass

    with another_process(helper):
        first()


def test_tensors_records_and_factors_arrive_unchanged_and_in_order(plan: SteerPlan) -> None:
    with another_process(lambda: hand_over_edits(SECOND, lambda: plan, edits_of)):
        found = list(shared_edits(plan, FIRST, edits_of))
    for one, expected in zip(found, edits_of(plan), strict=True):
        assert (one.name, one.record) == (expected.name, expected.record)
        assert torch.equal(one.tensor, expected.tensor)
        assert one.factored is not None
        assert expected.factored is not None
        assert one.factored.error == expected.factored.error
        assert list(one.factored.heads) == list(expected.factored.heads)
        for head, change in expected.factored.heads.items():
            assert torch.equal(one.factored.heads[head].left, change.left)
            assert torch.equal(one.factored.heads[head].right, change.right)


def test_bytes_changed_in_transit_are_refused(plan: SteerPlan, tmp_path: Path) -> None:
    entry = plan.layers[1].layer.query.tensor
    message = {
        "plan": fingerprint(plan),
        "tensor": entry.name,
        "sha256_before": "",
        "heads": [],
        "factors": None,
        "crc32": [1],
    }
    with (
        another_process(lambda: answer(message, (memoryview(bytes(entry.nbytes)),))),
        pytest.raises(QkeditError, match="changed on the way"),
    ):
        run_plan(plan, OutputOptions(tmp_path / "out", fsync=False), launch=FIRST)
    assert os.listdir(tmp_path) == []


def sent_away(stranger: socket.socket) -> bool:
    stranger.settimeout(10)
    try:
        return stranger.recv(1) == b""
    except ConnectionResetError:
        return True


def test_unknown_processes_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect without the secret of the launcher's store, or with an invalid process number."""
    monkeypatch.setattr(connections, "_GREETING", 0.2)
    stores = []
    made = connections._store
    monkeypatch.setattr(connections, "_store", lambda *place: stores.append(made(*place)) or stores[-1])

    def strangers() -> None:
        while not stores or not stores[0].check([connections._key()]):
            pass
        port, token = stores[0].get(connections._key()).decode().split()
        for greeting in (
            {"rank": 1},
            {"rank": 1, "token": "é"},
            {"rank": 2, "token": token},
            {"rank": "1", "token": token},
        ):
            with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                text = json.dumps(greeting).encode()
                stranger.sendall(connections._LENGTH.pack(len(text)) + text)
                assert sent_away(stranger)
        for content in (b"GET / HTTP/1.1\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                stranger.sendall(content)
                assert sent_away(stranger)
        ended()

    with another_process(strangers), others_of(FIRST) as others:
        assert list(others) == [1]


@pytest.mark.parametrize("wait", [others_of, first_of])
def test_waiting_for_other_processes_is_limited(
    monkeypatch: pytest.MonkeyPatch, wait: Callable[[Launch], Any]
) -> None:
    monkeypatch.setattr(connections, "MEETING", 0.3)
    launch = FIRST if wait is others_of else SECOND
    with pytest.raises(QkeditError, match=r"did not connect within 0.3 s"), wait(launch):
        pass


@pytest.mark.parametrize(("name", "value"), [("MASTER_ADDR", ""), ("MASTER_PORT", "none"), ("MASTER_PORT", "99999")])
def test_processes_without_a_rendezvous_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="are not set, so the processes cannot connect"), first_of(SECOND):
        pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, Launch(1, 4, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "4"}, None),  # a machine of a cluster without a launcher
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, None),
        ({"RANK": "-1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, None),
        ({"RANK": "one", "WORLD_SIZE": "²", "LOCAL_RANK": "0"}, None),
        ({}, None),
    ],
)
def test_the_variables_of_launchers_are_read(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Launch | None
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_different_options_are_a_different_plan(plan: SteerPlan) -> None:
    assert fingerprint(plan) == fingerprint(plan_for(SMALL_DEMO, SteerOptions("1-4")))
    assert fingerprint(plan) != fingerprint(replace(plan, options=replace(plan.options, compute_dtype="float64")))
