"""Test that an interrupt between any two lines of a run leaves no or a complete output, and no other files."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from qkedit.checkpoint.io import interrupts
from qkedit.checkpoint.io.background_copy import BackgroundCopy
from qkedit.checkpoint.io.interrupts import INTERRUPTS, interrupts_deferred
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.cli.interruptions import interruptible

# The files whose lines run between the blocks of `with` statements.
WATCHED = (str(Path(interrupts.__file__).parent), contextlib.__file__, __file__)


def interrupted_at(number: int, run: Callable[[], object], signum: int = signal.SIGHUP) -> bool:
    """Call `run` and send a signal at the given call, line or return of it; return False if it has fewer.

    A trace function is called between two instructions, where Python handles signals as well.
    """
    left = number
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        code = frame.f_code
        if (
            not code.co_filename.startswith(WATCHED) or code.co_name == "<genexpr>"
        ):  # lost when the generator is closed
            return None
        left -= event != "exception"
        if left < 0:
            sys.settrace(before)
            signal.raise_signal(signum)
            return None
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return left < 0


def succeeds_alone(function: Callable[..., None], *arguments: Any) -> bool:
    """Call a function of this module in a process of its own, and return whether it raised nothing.

    An exception out of a trace function inside an `except` block leaves Python believing that this block still runs:
    later exceptions of the process would have its exception as their context.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode == 0


def raise_on_every_signal() -> None:
    """Let every signal raise KeyboardInterrupt, as Ctrl-C does in programs that use qkedit as a library."""
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)


def test_an_interrupt_at_any_line_leaves_no_or_a_complete_output(tmp_path: Path) -> None:
    assert succeeds_alone(interrupt_an_output_at_every_line, tmp_path)


def interrupt_an_output_at_every_line(place: Path) -> None:
    """Copies are running when the block is left; none may run after its files have been removed."""
    raise_on_every_signal()
    target = place / "edited"
    running: list[Path] = []

    def make(file: Path, on_bytes: Callable[[int], None]) -> None:
        running.append(file)
        try:
            file.write_bytes(b"weights")
            time.sleep(0.0005)
            on_bytes(7)
        finally:
            running.remove(file)

    def write() -> None:
        with interruptible(), StagedDirectory(target, overwrite=True) as staged:
            jobs = {name: partial(make, staged.path / name) for name in "abc"}
            with BackgroundCopy(jobs, lambda _: None) as copying:
                copying.wait_for("a")
            staged.commit(fsync=False)

    ends = set()
    for number in range(10_000):
        came = True
        try:
            came = interrupted_at(number, write)
        except KeyboardInterrupt:
            ends.add("whole" if target.exists() else "nothing")
        assert not running, number
        assert not [path for path in place.iterdir() if path != target], number
        assert not target.exists() or {path.read_bytes() for path in target.iterdir()} == {b"weights"}
        assert {clean_up.__name__ for _, clean_up in interrupts._listed} <= {"end"}  # which does nothing
        assert {signal.getsignal(one) for one in INTERRUPTS} == {signal.default_int_handler}
        shutil.rmtree(target, ignore_errors=True)
        if not came:
            break
    assert not came
    assert number > 200
    assert ends == {"whole", "nothing"}


def test_a_second_interrupt_while_handlers_are_restored_is_not_lost() -> None:
    assert succeeds_alone(interrupt_the_restoring_of_handlers)


def interrupt_the_restoring_of_handlers() -> None:
    """Each signal is handled by the handler from before the block, wherever another signal ended the block."""

    raise_on_every_signal()

    def run() -> None:
        with interrupts_deferred():
            pass

    for number in range(1000):
        came = True
        try:
            came = interrupted_at(number, run, signal.SIGINT)  # its handler is restored first
        except KeyboardInterrupt:
            for one in INTERRUPTS:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(one)
        assert {signal.getsignal(one) for one in INTERRUPTS} == {signal.default_int_handler}
        if not came:
            break
    assert not came
    assert number > 10
