"""Test tune in rounds: the number of workers changes no result, and no process outlives a search."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qkedit.demo import SMALL_DEMO
from qkedit.errors import UsageError
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.laboratory import measures
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.tuning.result import Ended, TrialResult, TuneReport
from qkedit.laboratory.tuning.sampler import PastTrial, Sampler
from qkedit.laboratory.tuning.search import Search, SearchSettings, default_edit
from qkedit.laboratory.tuning.space import SearchSpace
from qkedit.laboratory.tuning.trial_runner import Effect, TrialRunner
from qkedit.laboratory.tuning.trial_worker import Measurement, TrialWorker
from qkedit.laboratory.tuning.tune import goal_of, tune_model
from qkedit.laboratory.tuning.worker_devices import worker_devices
from qkedit.runtime.loading import LoadedModel
from qkedit.steering.steer_options import SteerOptions
from tests.cli.command import qkedit
from tests.laboratory.small_eval_sets import demo_model
from tests.paths import ROOT

optuna = pytest.importorskip("optuna")

# Edits of several layers harm more than others, and are given up.
SPACE = SearchSpace(("each", "0-3", "2-6", "4-7"), ("all", "each"), (1, 4), (), ("full", "symmetric"), (0.0, 0.5))
ROUND, TRIALS = 4, 18


@pytest.fixture(scope="module")
def planted() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "tuning"))  # workers are given the path
        patch.setattr(measures, "RESAMPLES", 200)
        yield __import__("planted")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return demo_model()


def run(planted: ModuleType, loaded: LoadedModel, out: Path, workers: int, **options: Any) -> tuple[TuneReport, int]:
    """Return the result of a search in rounds, and the number of requests that this process answered."""
    data = planted.Planted()
    data.remember(loaded.model)
    settings = SearchSettings(TRIALS, 2, at_once=options.pop("at_once", ROUND), workers=workers)
    model = LocalModel(SMALL_DEMO, dtype="float32", shared=Shared(loaded))
    goal = goal_of("hr", "recall:0.05", data.measures)
    report = tune_model(model, data, SPACE, goal, settings, out=out, drift_images=1, seed=3, **options)
    return report, len(data.asked)


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_seconds(one) for name, one in value.items() if name not in ("seconds", "resumed")}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def lines(file: Path) -> list[Any]:
    return [without_seconds(json.loads(line)) for line in file.read_bytes().splitlines()]


def test_workers_change_no_result_and_a_round_goes_on_after_a_kill(
    planted: ModuleType, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared_with: list[int] = []
    unchanged = Sampler.gives_up

    def noted(sampler: Sampler, past: Sequence[PastTrial], costs: Sequence[float]) -> bool:
        compared_with.append(len(past))
        return unchanged(sampler, past, costs)

    monkeypatch.setattr(Sampler, "gives_up", noted)
    alone, asked = run(planted, loaded, tmp_path / "one.jsonl", 1)
    assert asked > 0
    # A trial is given up by comparison with those of earlier rounds.
    assert set(compared_with) == {0, 4, 8, 12, 16}
    assert any(trial.ended.value == "given up" for trial in alone.trials)
    assert alone.best is not None
    shared, asked = run(planted, loaded, tmp_path / "two.jsonl", 2)
    assert asked == 0  # the workers were
    expected = lines(tmp_path / "one.jsonl")
    assert without_seconds(shared.as_dict()) == without_seconds(alone.as_dict())
    assert sorted(map(str, lines(tmp_path / "two.jsonl"))) == sorted(map(str, expected))

    whole = (tmp_path / "two.jsonl").read_bytes().splitlines(keepends=True)
    trial = alone.trials[ROUND + 1].edit.name
    kept = next(number for number, line in enumerate(whole) if f'"{trial} | choice, part 1"'.encode() in line) + 1
    out = tmp_path / "killed.jsonl"
    out.write_bytes(b"".join(whole[:kept]) + b'{"key": "lay')
    resumed, _ = run(planted, loaded, out, 1)
    assert resumed.resumed == kept - 1
    assert without_seconds(resumed.as_dict()) == without_seconds(alone.as_dict())
    again = lines(out)
    assert again[:kept] == [without_seconds(json.loads(line)) for line in whole[:kept]]
    assert sorted(map(str, again)) == sorted(map(str, expected))
    with pytest.raises(UsageError, match="holds another experiment, with other at_once"):
        run(planted, loaded, out, 1, at_once=2)


def test_a_round_repeats_no_edit_and_takes_its_own_edits_for_bad_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, int]] = []

    class Noted(optuna.samplers.TPESampler):  # type: ignore[name-defined]
        def __init__(self, **options: Any) -> None:
            self.lies = bool(options.get("constant_liar"))  # the study has a sampler of its own, too
            super().__init__(**options)

        def before_trial(self, study: Any, trial: Any) -> None:
            running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
            asked.append((self.lies, len(running) - 1))  # without the one that is asked for
            super().before_trial(study, trial)

    monkeypatch.setattr(optuna.samplers, "TPESampler", Noted)
    order = Sampler(SPACE, seed=1)
    past: list[PastTrial] = []
    for edit in SPACE.candidates()[: order.startup_trials]:
        past.append(PastTrial(edit, (float(len(past)), 1.0 + len(past)), False))
    chosen: list[Any] = []
    for _ in range(6):
        chosen.append(order.next(past, chosen))
    assert len({*chosen, *(trial.edit for trial in past)}) == 6 + len(past)
    assert set(asked) == {(number > 0, number) for number in range(6)}
    # The same from a sampler that was asked nothing before, as after a kill.
    assert [Sampler(SPACE, seed=1).next(past, chosen[:number]) for number in range(6)] == chosen
    assert {trial.state for trial in order._study(past).trials[len(past) :]} == {optuna.trial.TrialState.FAIL}
    # At the start a round spreads over the layers, too.
    first: list[Any] = []
    while len(first) < 4:
        first.append(order.next([], first))
    assert {edit.layers for edit in first} == set(SPACE.layers)


@pytest.mark.parametrize(
    ("device", "device_map", "at_once", "workers", "gpus", "found"),
    [
        ("cuda", None, 6, 5, 3, ("cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1")),
        ("cuda", None, 4, None, 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", None, 2, None, 3, ("cuda:0", "cuda:1")),
        ("cuda", None, 1, None, 3, ("cuda",)),
        ("cuda:1", None, 4, None, 3, ("cuda:1",)),
        ("cuda:1", None, 4, 2, 3, ("cuda:1", "cuda:1")),
        ("cpu", None, 4, None, 3, ("cpu", "cpu")),
        ("cpu", None, 4, 3, 0, ("cpu", "cpu", "cpu")),
        ("mps", None, 4, None, 0, ("mps",)),
        ("cuda", "auto", 4, None, 3, ("cuda",)),
    ],
)
def test_each_worker_has_a_device(
    device: str,
    device_map: str | None,
    at_once: int,
    workers: int | None,
    gpus: int,
    found: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No GPU is needed: their number is pretended."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert worker_devices(device, device_map, at_once, workers) == found


def test_a_worker_loads_and_edits_on_its_own_device(planted: ModuleType, loaded: LoadedModel) -> None:
    model, data = LocalModel(SMALL_DEMO, device="cuda", shared=Shared(loaded)), planted.Planted()
    devices = ("cuda:0", "cuda:1")
    runner = TrialRunner(model, data, None, device="cuda", drift_images=0, devices=devices, single_thread=True)
    made = [maker() for maker in runner._pool._makers]
    assert [(worker._model.device, worker._device) for worker in made] == [(one, one) for one in devices]
    assert {worker._model.shared for worker in made} == {None}
    # An arm names the kind of device in its record; the edit is computed on the worker's.
    data.remember(loaded.model)
    arm = Arm("edit", SteerOptions("3", device="cuda"))
    with TrialWorker(replace(model, device="cpu"), data, "cpu", 0) as worker:
        record = worker.measure(Measurement(arm))
    assert record["energy_removed"] > 0
    assert record["arm"]["steer"]["device"] == "cuda"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--workers", "2"), "2 workers share rounds of 1; give --at-once 2 or more"),
        (("--workers", "2", "--at-once", "2", "--device-map", "auto"), "spread over the devices of one process"),
    ],
)
def test_workers_that_cannot_be_are_refused(words: tuple[str, ...], sentence: str) -> None:
    assert sentence in qkedit("tune", SMALL_DEMO, *words).sentence()


@pytest.mark.parametrize(("at_once", "workers"), [(1, 1), (4, 1), (2, 2), (4, 2), (8, 2), (4, 3), (8, 8)])
@pytest.mark.parametrize("prunes", [True, False])
def test_the_announced_time_is_that_of_rounds_on_workers(
    planted: ModuleType, at_once: int, workers: int, prunes: bool
) -> None:
    """Compare with a schedule of trials that take between a quarter and all of a given time."""
    data = planted.Planted()
    model = LocalModel(SMALL_DEMO)
    runner = TrialRunner(
        model, data, None, device="cpu", drift_images=0, devices=("cpu",) * workers, single_thread=True
    )
    settings = SearchSettings(controls=5, at_once=at_once, workers=workers)
    goal = goal_of("hr", "none", data.measures)
    search = Search(runner, SPACE, Sampler(SPACE, prunes=prunes), goal, settings, default_edit("0"))
    questions, edit = 8.0, 1.0
    search._base_seconds = questions
    whole = TrialResult(1, default_edit("0"), Ended.FINISHED, Effect(0.1, 0.1, None, edit), {}, None, (), 9.0)
    draws = random.Random(0)
    for trials in (0, 7, 40):
        parts = [draws.choice((2, 8, 8, 8, 4) if prunes else (8,)) for _ in range(trials)]
        rounds = [parts[start : start + at_once] for start in range(0, trials, at_once)]
        taken = sum(scheduled([edit + questions * one / 8 for one in some], workers) for some in rounds)
        taken += scheduled([edit + questions] * 8, workers)  # the confirmation has as many images
        announced = search._seconds_left([whole] * at_once, trials)
        assert 0.75 * taken <= announced <= 1.25 * taken


def scheduled(jobs: Sequence[float], workers: int) -> float:
    """Return the time of jobs, each begun in turn by the first worker that is idle."""
    ends = [0.0] * workers
    for job in jobs:
        ends.sort()
        ends[0] += job
    return max(ends)


def test_an_error_in_a_worker_is_one_sentence(tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": f"{n}.png", "question": "Is there a cup?", "truth": "yes"} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        (tmp_path / str(row["image"])).write_bytes(b"no picture")
    words: list[str | Path] = [
        "tune",
        SMALL_DEMO,
        "-b",
        "custom",
        "--questions",
        tmp_path / "q.jsonl",
        "--images",
        tmp_path,
    ]
    words += ["--objective", "accuracy", "--no-worse", "none", "--drift-images", "0", "--max-new-tokens", "2"]
    for workers in ("1", "2"):
        result = qkedit(*words, "--at-once", "2", "--workers", workers)
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1].endswith(".png: is not an image; give a PNG, JPEG or WebP file.")
        assert "Traceback" not in result.stderr


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "tune.jsonl"
    # Tests may run as a background job, which ignores SIGINT.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{heard}; from qkedit.cli.app import run; run()"
    words = ["tune", SMALL_DEMO, "--scenes", "64", "--at-once", "2", "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        limit = time.monotonic() + 300
        while not (out.exists() and out.read_bytes().count(b"\n") > 3):
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert f"from what {out} holds" in said
        while (left := still_running(process.pid)) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not left
    finally:
        if still_running(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def still_running(group: int) -> bool:
    """Return whether a group of processes has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
