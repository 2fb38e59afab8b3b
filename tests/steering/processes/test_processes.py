"""Test `torchrun -m qkedit steer`: several processes write the files of one, or fail with one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from qkedit.demo import SMALL_DEMO
from tests.cli.command import Result, Runs, qkedit, runs
from tests.steering.checkpoints import contents, query_name, weights, write

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
EDITS = {
    "full": ("--layers", "1-5", "--k", "3"),
    "delta, control": ("--layers", "all", "--k", "2", "--control", "norm", "--seed", "7", "--layout", "delta"),
    "lora": ("--layers", "1-3", "--k", "2", "--layout", "lora"),
    "energy, channel": ("--layers", "0-4", "--energy", "0.6", "--channel", "symmetric", "--retain", "0.25"),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Return a process that has imported torch, and starts the processes of a launcher by fork."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
    with runs(tmp_path_factory.mktemp("runs"), kept | {"OMP_NUM_THREADS": "1"}) as started:
        yield started


def environments(size: int) -> list[dict[str, str]]:
    """Return the environment that a launcher sets, with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        dict(zip(LAUNCHED, (str(rank), str(size), str(rank), "127.0.0.1", port), strict=True)) for rank in range(size)
    ]


def together(processes: Runs, size: int, *arguments: str | Path) -> list[Result]:
    """Run a command in several processes until all have ended."""
    processes.start(*arguments, environments=environments(size))
    return processes.finish_all()


def silent(results: Sequence[Result], code: int) -> bool:
    return all((result.code, result.stdout, result.stderr) == (code, "", "") for result in results)


@pytest.mark.parametrize("edit", EDITS)
def test_several_processes_write_the_bytes_of_one(processes: Runs, tmp_path: Path, edit: str) -> None:
    arguments = ("steer", SMALL_DEMO, *EDITS[edit], "--device", "cpu", "--no-fsync")
    assert qkedit(*arguments, "--out", tmp_path / "one").code == 0
    expected = contents(tmp_path / "one")
    sizes = (2, 4) if edit == "full" else (2,)
    for size in sizes:
        first, *others = together(processes, size, *arguments, "--out", tmp_path / str(size))
        assert first.code == 0, first.stderr
        assert "steered" in first.stdout
        assert silent(others, 0)
        assert contents(tmp_path / str(size)) == expected
    assert sorted(os.listdir(tmp_path)) == [*map(str, sizes), "one"]


def test_there_may_be_more_processes_than_layers(processes: Runs, tmp_path: Path) -> None:
    arguments = ("steer", SMALL_DEMO, "--layers", "1,4", "--k", "3", "--no-fsync")
    first, *others = together(processes, 3, *arguments, "--out", tmp_path / "three")
    assert first.code == 0
    assert silent(others, 0)
    assert qkedit(*arguments, "--out", tmp_path / "one").code == 0
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a checkpoint whose layer 1, which the second process edits, cannot be edited."""
    tensors = weights()
    tensors[query_name(1)][:] = torch.nan
    return write(tmp_path / "broken", tensors)


@pytest.mark.parametrize("size", [2, 3])
def test_a_failed_edit_of_one_process_is_reported_once(
    processes: Runs, tmp_path: Path, broken: Path, size: int
) -> None:
    arguments = ("steer", broken, "--layers", "all", "--k", "2", "--out", tmp_path / "out")
    first, *others = together(processes, size, *arguments)
    assert (first.code, first.sentence()) == (1, qkedit(*arguments).sentence())
    assert query_name(1) in first.stderr
    assert silent(others, 1)
    assert os.listdir(tmp_path) == ["broken"]


def test_an_invalid_request_is_reported_once(processes: Runs, tmp_path: Path) -> None:
    processes.start("steer", SMALL_DEMO, "--layers", "99", "--out", tmp_path / "out", environments=environments(2))
    until(lambda: processes.standard_error().endswith("\n"))
    processes.signal(signal.SIGTERM, 1)  # like a launcher, which ends the remaining ones
    first, other = processes.finish_all()
    assert first.code == 2
    assert "99" in first.sentence()
    # A signal that comes before the command handles it ends the process at once.
    assert silent([other], 130) or silent([other], -signal.SIGTERM)
    assert os.listdir(tmp_path) == []


def test_a_signal_to_all_processes_is_reported_once(processes: Runs, tmp_path: Path) -> None:
    target, interrupted = tmp_path / "out", 0
    for pause in (0, 0.05, 0.2):
        processes.start(
            "steer", SMALL_DEMO, "--layers", "all", "--k", "2", "--out", target, environments=environments(2)
        )
        until((tmp_path / ".out.qkedit" / "new" / "config.json").exists)
        time.sleep(pause)
        for rank in (1, 0):
            processes.signal(signal.SIGTERM, rank)
        first, other = processes.finish_all()
        if first.code == 130:
            interrupted += 1
            assert "interrupted" in first.sentence()
            assert other.code in (0, 130, -signal.SIGTERM)  # the last code is that of a command that had not begun
        else:  # the signal arrived during the last lines of the run
            assert first.code == 0
            shutil.rmtree(target)
        assert (other.stdout, other.stderr) == ("", "")
        assert os.listdir(tmp_path) == []
    assert interrupted


@pytest.mark.parametrize("command", [("verify", "nowhere"), ("--version",), ("inspect", SMALL_DEMO, "--layers", "1")])
def test_only_the_first_process_does_unshared_work(processes: Runs, command: Sequence[str]) -> None:
    first, other = together(processes, 2, *command)
    alone = qkedit(*command)
    assert (first.code, first.stdout, first.stderr) == (alone.code, alone.stdout, alone.stderr)
    assert silent([other], 0)


def test_only_the_first_process_prints_a_plan(processes: Runs) -> None:
    first, other = together(processes, 2, "steer", SMALL_DEMO, "--layers", "1", "--dry-run")
    assert "Nothing was written." in first.stdout
    assert silent([other], 0)


def until(happened: Callable[[], bool], patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)
