"""Test that background copies run concurrently, stop on request, and report failures."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from qkedit.checkpoint.io import background_copy, copying
from qkedit.checkpoint.io.background_copy import BackgroundCopy, CopyJob
from qkedit.checkpoint.io.copying import LinkMode, copy_file
from qkedit.errors import QkeditError


def ignore(_: int) -> None:
    """Ignore the number of bytes."""


def test_jobs_run_during_the_block_and_have_ended_after_it(tmp_path: Path) -> None:
    go = threading.Event()
    ran: list[object] = []

    def first(on_bytes: Callable[[int], None]) -> None:
        assert go.wait(30)  # set within the block: a deadlock if entering the block waited for the job
        ran.append(threading.current_thread())
        on_bytes(3)

    (tmp_path / "source").write_bytes(b"weights")
    counted: list[int] = []
    jobs = {"first": first, "copy": partial(copy_file, tmp_path / "source", tmp_path / "copy", 7, LinkMode.AUTO)}
    with BackgroundCopy(jobs, counted.append) as background:
        background.check()
        go.set()
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert sorted(counted) == [3, 7]
    assert ran != [threading.current_thread()]
    assert background.join() > 0
    background.check()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_waiting_for_a_copy_does_not_wait_for_later_ones(threads: int) -> None:
    names = ("first", "second", "last")
    go = threading.Event()
    begun: list[str] = []
    made: list[str] = []

    def make(name: str, on_bytes: Callable[[int], None]) -> None:
        begun.append(name)
        if name == "last":
            assert go.wait(30)  # set after the earlier copies were waited for
        made.append(name)

    with BackgroundCopy({name: partial(make, name) for name in names}, ignore, threads) as background:
        background.wait_for("second")
        assert "second" in made
        background.wait_for("a file that is not copied")
        assert "last" not in made
        go.set()
        background.wait_for("last")
        assert "last" in made
    assert set(made) == set(begun) == set(names)
    if threads == 1:
        assert begun == list(names)


def test_copies_run_in_the_requested_number_of_threads() -> None:
    meeting = threading.Barrier(2, timeout=30)
    with BackgroundCopy({name: lambda on_bytes: meeting.wait() for name in "abcd"}, ignore, threads=2):
        pass


def test_the_error_comes_from_the_copy_that_failed_first() -> None:
    began = threading.Event()

    def endless(on_bytes: Callable[[int], None]) -> None:
        began.set()
        while True:
            on_bytes(1)

    def failing(on_bytes: Callable[[int], None]) -> None:
        assert began.wait(30)
        raise QkeditError("the disk is full")

    jobs: dict[str, CopyJob] = {"endless": endless, "failing": failing}
    with suppress(QkeditError), BackgroundCopy(jobs, ignore, threads=2) as background:
        for raising in (partial(background.wait_for, "endless"), background.join, background.check):
            with pytest.raises(QkeditError, match="the disk is full"):
                raising()


def test_every_wait_and_check_raises_the_error_of_a_copy(tmp_path: Path) -> None:
    later: list[int] = []
    jobs: dict[str, CopyJob] = {
        "copy": partial(copy_file, tmp_path / "missing", tmp_path / "copy", 7, LinkMode.AUTO),
        "later": lambda _: later.append(1),
    }
    with suppress(QkeditError), BackgroundCopy(jobs, ignore, threads=1) as background:
        waiting = [partial(background.wait_for, name) for name in jobs]
        for raising in (background.join, background.check, *waiting):
            with pytest.raises(QkeditError, match="missing: cannot open"):
                raising()
    with pytest.raises(QkeditError, match="missing: cannot open"), BackgroundCopy(jobs, ignore, threads=1):
        pass
    assert later == []


@pytest.mark.parametrize("end", [ZeroDivisionError, KeyboardInterrupt])
def test_copies_stop_at_the_next_piece_when_the_block_fails(
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

    monkeypatch.setattr(background_copy, "wait", wait)
    source = tmp_path / "source"
    jobs = {
        name: partial(copy_file, source, tmp_path / name, source.stat().st_size, LinkMode.COPY)
        for name in ("first", "second")
    }

    def break_off() -> None:
        with BackgroundCopy(jobs, on_bytes, threads=1):
            assert began.wait(30)
            raise end

    with pytest.raises(end):
        break_off()
    assert waited_for.is_set()
    assert len(pieces) == 1
    assert not (tmp_path / "second").exists()


def test_cancel_stops_a_copy_and_later_checks_raise() -> None:
    began = threading.Event()

    def endless(on_bytes: Callable[[int], None]) -> None:
        while True:
            on_bytes(1)
            began.set()

    with suppress(CancelledError), BackgroundCopy({"endless": endless}, ignore) as background:
        assert began.wait(30)
        background.cancel()
        for raising in (background.check, background.join, partial(background.wait_for, "endless")):
            with pytest.raises(CancelledError):
                raising()
