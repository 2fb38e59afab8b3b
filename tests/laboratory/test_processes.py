"""Test several processes against one, and failures of a process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import Future
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from qkedit.demo import SMALL_DEMO
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError, VerificationError
from qkedit.laboratory import processes as workers
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.processes import run_jobs
from qkedit.laboratory.worker import Job, JobResult, ModelSpec
from qkedit.plugins.settings import PluginSettings
from qkedit.spectral.suppression import Suppression
from qkedit.steering.steer_options import SteerOptions

FEW = SceneRange(2, world=SMALL.name)
EDIT = SteerOptions("2-3", suppression=Suppression(k=8), device="cpu")


def test_several_processes_equal_one_and_all_stop_when_one_is_killed() -> None:
    """Use one pool for both checks, since starting it takes most of the time."""
    jobs = [
        Job(Arm(BASE), FEW),
        Job(Arm("edited", EDIT, (PluginSettings("scr", {"selection": "uniform"}),)), FEW),
        Job(Arm("base again"), FEW),  # in any worker, whether or not it has edited before
    ]
    serial = {job.arm.name: result for job, result in run_jobs(ModelSpec(SMALL_DEMO), jobs, 1)}
    results = run_jobs(ModelSpec(SMALL_DEMO), [*jobs, *(Job(Arm(str(number)), FEW) for number in range(99))], 2)
    parallel: dict[str, JobResult] = {}
    while not serial.keys() <= parallel.keys():
        job, result = next(results)
        parallel[job.arm.name] = result
    for name, result in serial.items():
        assert parallel[name].answers == result.answers
        assert parallel[name].energy_removed == result.energy_removed
    assert serial["base again"].answers == serial[BASE].answers != serial["edited"].answers
    assert serial["edited"].energy_removed is not None
    assert 0 < serial["edited"].energy_removed <= 1
    assert serial[BASE].energy_removed is None

    (worker, *_) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(QkeditError, match="worker"):
        list(results)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "call",
    [
        # More scenes than fit into the pipe by which a process is started.
        'qkedit.tune("demo-small", scenes=40, trials=2, at_once=2, workers=2, drift_images=0, out="out.jsonl")',
        'qkedit.sweep("demo-small", layers=["2"], scenes=4, seeds=2, workers=2, out="out.jsonl")',
        'qkedit.demonstrate("demo-small", scenes=2, seeds=2, workers=2)',
    ],
)
def test_a_script_without_a_guard_ends_with_one_error(call: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import qkedit\n{call}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2  # of one error and its cause
    assert done.stderr.splitlines()[-1] == (
        "qkedit.errors.QkeditError: workers: a worker process could not start; "
        'put what your script runs under `if __name__ == "__main__":`, or use one worker.'
    )


def test_work_that_cannot_be_sent_is_an_error() -> None:
    def task() -> Generator[Any, Any, None]:
        yield methodcaller("upper")

    with (
        pytest.raises(QkeditError, match=r"^workers: the work cannot be sent .*lambda.*; use one worker\.$"),
        workers.Workers([lambda: "text"] * 2) as pool,
    ):
        list(pool.run([task()]))
    assert not multiprocessing.active_children()


def test_an_invalid_arm_is_an_error() -> None:
    with pytest.raises(UsageError, match="beyond the model"):
        list(run_jobs(ModelSpec(SMALL_DEMO), [Job(Arm("beyond", SteerOptions("99", device="cpu")), FEW)], 1))


@pytest.mark.parametrize("kind", [QkeditError, UsageError, VerificationError])
def test_errors_keep_all_fields_between_processes(kind: type[QkeditError]) -> None:
    error = kind("it broke", where="here", remedy="mend it")
    if isinstance(error, VerificationError):
        error.mismatches = ("a", "b")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "here: it broke; mend it."
    assert vars(copy) == vars(error)


def test_ctrl_c_is_blocked_while_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal during the imports would print a traceback."""

    def blocked() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    class Pool:
        def __init__(self, *_: object) -> None:
            pass

        def submit(self, *_: object) -> Future[bool]:
            future: Future[bool] = Future()
            future.set_result(blocked())
            return future

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    results = run_jobs(ModelSpec(SMALL_DEMO), [Job(Arm(name), FEW) for name in "ab"], 2)
    assert [bool(result) for _, result in results] == [True, True]
    assert not blocked()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    previous = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(workers, "_follow_parent", lambda: None)
    try:
        workers._start(None)
        assert not blocked()
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
