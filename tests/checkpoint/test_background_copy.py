"""Copies run beside other work, stop when told to, and report what failed."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path

import pytest

from qkedit.checkpoint import copying
from qkedit.checkpoint.copying import (
    BackgroundCopy,
    CopyJob,
    LinkMode,
    copy_file,
)
from qkedit.errors import QkeditError


def ignore(_: int) -> None:
    """Count no bytes."""


def test_jobs_run_in_order_beside_the_block_and_are_done_after_it(tmp_path: Path) -> None:
    go = threading.Event()
    ran: list[object] = []

    def first(on_bytes: Callable[[int], None]) -> None:
        assert go.wait(30)  # set in the block: would wait for ever if the block waited for the job
        ran.append(threading.current_thread())
        on_bytes(3)

    (tmp_path / "source").write_bytes(b"weights")
    counted: list[int] = []
    jobs = {"first": first, "copy": partial(copy_file, tmp_path / "source", tmp_path / "copy", LinkMode.AUTO)}
    with BackgroundCopy(jobs, counted.append) as background:
        background.check()
        assert not (tmp_path / "copy").exists()
        go.set()
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert counted == [3, 7]
    assert ran != [threading.current_thread()]
    assert background.join() > 0
    background.check()


def test_waiting_for_one_copy_waits_for_no_later_one() -> None:
    go = threading.Event()
    made: list[str] = []

    def make(name: str, on_bytes: Callable[[int], None]) -> None:
        if name == "last":
            assert go.wait(30)  # set after the waiting below
        made.append(name)

    with BackgroundCopy({name: partial(make, name) for name in ("first", "second", "last")}, ignore) as background:
        background.wait_for("second")
        assert made == ["first", "second"]
        background.wait_for("what nobody copies")
        go.set()
        background.wait_for("last")
        assert made == ["first", "second", "last"]


def test_a_failed_copy_is_raised_where_one_waits_or_looks(tmp_path: Path) -> None:
    later: list[int] = []
    jobs: dict[str, CopyJob] = {
        "copy": partial(copy_file, tmp_path / "missing", tmp_path / "copy", LinkMode.AUTO),
        "later": lambda _: later.append(1),
    }
    background = BackgroundCopy(jobs, ignore)
    waiting = [partial(background.wait_for, name) for name in jobs]
    for raising in (background.join, background.check, *waiting):
        with pytest.raises(QkeditError, match="missing: cannot open"):
            raising()
    with pytest.raises(QkeditError, match="missing: cannot open"), BackgroundCopy(jobs, ignore):
        pass
    assert later == []


@pytest.mark.parametrize("end", [ZeroDivisionError, KeyboardInterrupt])
def test_copies_stop_with_the_next_piece_when_the_block_is_broken_off(
    end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_CHUNK", 7)
    (tmp_path / "source").write_bytes(b"x" * 1000)
    began, waited_for = threading.Event(), threading.Event()
    pieces: list[int] = []

    def on_bytes(length: int) -> None:
        pieces.append(length)
        began.set()
        assert waited_for.wait(30)

    def wait(futures: list[Future[float]]) -> None:
        waited_for.set()
        concurrent.futures.wait(futures)

    monkeypatch.setattr(copying, "wait", wait)
    jobs = {
        name: partial(copy_file, tmp_path / "source", tmp_path / name, LinkMode.COPY) for name in ("first", "second")
    }

    def break_off() -> None:
        with BackgroundCopy(jobs, on_bytes):
            assert began.wait(30)
            raise end

    with pytest.raises(end):
        break_off()
    assert waited_for.is_set()
    assert len(pieces) == 1
    assert not (tmp_path / "second").exists()


def test_cancel_stops_a_copy_and_says_so_afterwards() -> None:
    began = threading.Event()

    def endless(on_bytes: Callable[[int], None]) -> None:
        while True:
            on_bytes(1)
            began.set()

    background = BackgroundCopy({"endless": endless}, ignore)
    assert began.wait(30)
    background.cancel()
    for raising in (background.check, background.join, partial(background.wait_for, "endless")):
        with pytest.raises(CancelledError):
            raising()
