"""Test that killed, interrupted and concurrent processes never leave an incomplete output."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.errors import QkeditError
from tests.checkpoint.io import staging_process
from tests.checkpoint.outputs import read_generation, siblings, tree, write_output, write_to
from tests.paths import ROOT


def start(work: str, target: Path, step: int = 0, kind: str = "atomic") -> subprocess.Popen[str]:
    """Start staging_process.py and wait until its work begins. It runs without site-packages to start faster."""
    process = subprocess.Popen(
        [sys.executable, "-S", staging_process.__file__, work, str(target), str(step), kind],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr
    return process


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def test_ctrl_c_leaves_no_files(target: Path) -> None:
    process = start("hold", target)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert siblings(target) == [".edited.qkedit"]
    process.send_signal(signal.SIGINT)
    assert finish(process) != 0
    assert siblings(target) == []


def restore(old: Path) -> None:
    """Restore the first generation."""
    shutil.rmtree(old)
    old.mkdir()
    write_output(old, 1)


@pytest.mark.parametrize("work", ["interrupt", "again"])
def test_an_interrupted_run_cleans_up_before_any_file_operation(old: Path, work: str) -> None:
    """The run leaves the old or the new output and no other files, however many signals it receives."""
    generations = set()
    for step in range(1, 60):
        end = finish(start(work, old, step))
        generation = read_generation(old)
        generations.add(generation)
        assert siblings(old) == ["edited"], step
        if end == 0:
            break
        if generation == 2:
            restore(old)
    assert end == 0
    assert step > 20
    assert generations == {1, 2}


def test_a_run_killed_before_any_file_operation_leaves_a_complete_output(old: Path, exchange_kind: str) -> None:
    """Each run dies one operation later than the previous one, until one finishes."""
    seen = set()
    for step in range(1, 200):
        end = finish(start("write", old, step, exchange_kind))
        assert end in (0, -signal.SIGKILL)
        generation = read_generation(old)  # fails if the output is incomplete
        seen.add(generation)
        with StagedDirectory(old, overwrite=True) as staged:
            assert os.listdir(staged.path) == []
        assert siblings(old) == ["edited"]
        assert read_generation(old) == (1 if generation is None else generation)
        if end == 0:
            break
        if generation == 2:
            restore(old)
    assert end == 0
    assert step > 20  # at least so many operations were tried
    # Only an exchange by two renames leaves a moment without a target.
    assert seen == ({1, 2} if exchange_kind == "atomic" else {1, 2, None})


def test_a_first_run_killed_before_any_file_operation_leaves_no_partial_output(
    target: Path, exchange_kind: str
) -> None:
    for step in range(1, 200):
        end = finish(start("write", target, step, exchange_kind))
        assert end in (0, -signal.SIGKILL)
        generation = read_generation(target)
        assert generation in (None, 2)
        if generation == 2:
            shutil.rmtree(target)
        with StagedDirectory(target, overwrite=False):
            pass
        assert siblings(target) == []
        if end == 0:
            break
    assert end == 0
    assert generation == 2


def test_runs_killed_at_random_moments_leave_a_complete_output(old: Path, exchange_kind: str) -> None:
    """Each process starts from the state after a kill; the last one leaves no temporary files."""
    moments = random.Random(0)
    newest = 1
    for _ in range(40):
        process = start("repeat", old, kind=exchange_kind)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        generation = read_generation(old)
        assert generation is not None or exchange_kind == "plain"
        newest = max(newest, generation or 0)
    assert newest > 1  # some runs did commit
    with StagedDirectory(old, overwrite=True) as staged:
        write_output(staged.path, 1000)
        staged.commit()
    assert read_generation(old) == 1000
    assert siblings(old) == ["edited"]


def test_a_second_run_for_one_target_is_refused_at_once(target: Path) -> None:
    process = start("hold", target)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    staged_by_first = tree(target.parent)
    with pytest.raises(QkeditError, match="another run is writing"), StagedDirectory(target, overwrite=True):
        pass
    with StagedDirectory(target.with_name("other"), overwrite=True):
        pass  # another target is free
    assert tree(target.parent) == staged_by_first

    process.kill()
    finish(process)
    with StagedDirectory(target, overwrite=True) as staged:  # the lock of a dead run is released
        write_output(staged.path, 3)
        staged.commit()
    assert read_generation(target) == 3
    assert siblings(target) == ["edited"]


@pytest.mark.parametrize("third_run", [False, True])
def test_a_lock_on_a_removed_lock_file_is_not_accepted(
    target: Path, third_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner removes the lock file between opening and locking; a third run may begin."""
    lock = target.parent / ".edited.qkedit" / "lock"
    real = fcntl.flock
    attempts: list[int] = []
    held: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        attempts.append(descriptor)
        if len(attempts) == 1:
            shutil.rmtree(lock.parent)
            if third_run:
                lock.parent.mkdir()
                held.append(os.open(lock, os.O_RDWR | os.O_CREAT))
                real(held[0], operation)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    if third_run:
        with pytest.raises(QkeditError, match="another run"):
            write_to(target)
        os.close(held[0])
    else:
        write_to(target)
        assert read_generation(target) == 2
    assert len(attempts) == 2


@pytest.fixture
def eager_thread_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_thread_switches")
def test_two_runs_never_overlap_although_the_lock_file_is_removed(target: Path) -> None:
    inside = threading.Lock()
    entered, refused, mixed = [], [], []

    def run(_: int) -> None:
        for generation in range(150):
            try:
                with StagedDirectory(target, overwrite=True) as staged:
                    if not inside.acquire(blocking=False):
                        mixed.append(generation)
                    (staged.path / "qkedit.json").write_text('{"tool": {"name": "qkedit", "version": "1"}}')
                    entered.append(generation)
                    if generation % 3:
                        staged.commit(fsync=False)
                    inside.release()
            except QkeditError as error:
                refused.append(error.what)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(run, range(4)))
    assert set(refused) == {"another run is writing to this directory"}
    assert mixed == []
    assert entered
    assert siblings(target) == ["edited"]
