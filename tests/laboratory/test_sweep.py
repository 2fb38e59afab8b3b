"""Test sweeps: the grid, the choice, resuming after a kill, and the confirmation on the other half."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qkedit.demo import SMALL_DEMO
from qkedit.demo.scenes import with_article
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.statistics.guard import Guard
from qkedit.laboratory import experiment, measures, sweep
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.arms import BASE, Arm, demonstration_arms
from qkedit.laboratory.demonstration import demonstrate
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.sweep import SweepReport, run_sweep
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.sweep_setup import prepare
from qkedit.laboratory.tuning.confirmation import Verdict
from qkedit.laboratory.tuning.goal import guards
from qkedit.laboratory.tuning.option_lists import alternatives, names, shares, whole_numbers
from qkedit.laboratory.tuning.space import Candidate
from qkedit.laboratory.worker import Job, JobResult, ModelSpec
from qkedit.report.experiments.sweep_table import SweepTables
from qkedit.spectral.suppression import Suppression
from qkedit.steering.steer_options import SteerOptions

SCENES = SceneRange(40, seed=3, world=SMALL.name)
eval_set_about = cache(make_eval_set)


def settings(**changes: Any) -> SweepSettings:
    standard: dict[str, Any] = {
        "model": SMALL_DEMO,
        "weights": "0" * 64,
        "dtype": "float32",
        "device": "cpu",
        "layers": ("0-1", "2-3"),
        "ks": (1, 2),
        "channels": ("full",),
        "retains": (0.0,),
        "control": "index",
        "seeds": 2,
        "objective": "chair_s",
        "guards": (Guard("recall", 0.05),),
        "scenes": SCENES,
        "eval_set": "0" * 64,
    }
    return SweepSettings(**{**standard, **changes})


def answers_with(eval_set: EvalSet, invented: float, forgotten: float) -> EvalSetAnswers:
    """Return captions with absent objects for some scenes and empty ones for others, and yes to every question."""
    captions = []
    for place, scene in enumerate(eval_set.scenes):
        share = place / len(eval_set.scenes)
        absent = next(kind for kind in ("plate", "boat", "tree", "car") if kind not in scene.kinds)
        text = "A place." if share >= 1 - forgotten else scene.caption
        captions.append(text + (f" And {with_article(absent)}." if share < invented else ""))
    return EvalSetAnswers(tuple(captions), ("Yes.",) * len(eval_set.asked))


class Pretended:
    """Replace the workers: every arm hallucinates and omits at chosen rates, and every job is recorded."""

    def __init__(self, behaviour: dict[str, tuple[float, float]]) -> None:
        self.behaviour = behaviour
        self.jobs: list[tuple[str, SceneRange]] = []
        self.stop_after: int | None = None

    def __call__(self, model_spec: ModelSpec, jobs: Sequence[Job], workers: int) -> Any:
        for job in jobs:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise KeyboardInterrupt
            self.jobs.append((job.arm.name, job.scenes))
            invented, forgotten = next(
                (values for start, values in self.behaviour.items() if job.arm.name.startswith(start)), (0.5, 0.0)
            )
            yield job, JobResult(answers_with(eval_set_about(job.scenes), invented, forgotten), 1.0, 0.5, 0.25)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    replacement = Pretended(
        {
            "layers 0-1, k 1, full, retain 0, index": (0.45, 0.0),  # controls of the first cell
            "layers 0-1, k 1": (0.30, 0.0),
            "layers 0-1, k 2, full, retain 0, index": (0.5, 0.0),
            "layers 0-1, k 2": (0.05, 0.5),  # hallucinates least, since its captions are shortest
            "layers 2-3, k 2": (0.35, 0.0),
        }
    )
    monkeypatch.setattr(experiment, "run_jobs", replacement)
    monkeypatch.setattr(sweep, "make_eval_set", eval_set_about)
    monkeypatch.setattr(measures, "RESAMPLES", 50)  # these tests check values, not intervals
    return replacement


def run(given: SweepSettings, file: ResultsFile | None = None) -> SweepReport:
    return run_sweep(ModelSpec(SMALL_DEMO), given, file, 1)


def test_the_winner_is_the_best_edit_within_the_guards(pretended: Pretended) -> None:
    report = run(settings())
    assert [(result.cell.layers, result.cell.k) for result in report.ranked] == [
        ("0-1", 1),
        ("2-3", 2),
        ("2-3", 1),
        ("0-1", 2),
    ]
    assert report.winner is report.ranked[0]
    assert report.ranked[-1].broken == ("recall",)
    assert report.winner.objective.interval.value == pytest.approx(0.3)
    assert report.winner.controls.interval.value == pytest.approx(0.45)
    assert report.winner.controls.difference is not None
    assert report.winner.controls.difference.value == pytest.approx(-0.05)
    assert report.base == {"chair_s": pytest.approx(0.5), "recall": pytest.approx(1.0)}


def test_without_guards_empty_captions_win(pretended: Pretended) -> None:
    winner = run(settings(guards=())).winner
    assert winner is not None
    assert (winner.cell.layers, winner.cell.k) == ("0-1", 2)


def test_a_measure_to_be_raised_is_ranked_in_descending_order(pretended: Pretended) -> None:
    # Empty captions have the lowest recall; the others have equal recall, and the mildest edit comes first.
    ranked = run(settings(objective="recall", guards=())).ranked
    assert [(result.cell.layers, result.cell.k) for result in ranked] == [
        ("0-1", 1),
        ("2-3", 1),
        ("2-3", 2),
        ("0-1", 2),
    ]


def test_if_every_cell_breaks_a_guard_the_second_half_is_not_used(pretended: Pretended) -> None:
    pretended.behaviour = {"layers": (0.1, 0.6)}
    report = run(settings())
    assert report.winner is None
    assert (report.confirmation, report.verdict) == (None, Verdict.NOTHING)
    first, _ = SCENES.halves()
    assert {scenes for _, scenes in pretended.jobs} == {first}


def test_the_second_half_is_answered_once_by_base_winner_and_controls(pretended: Pretended) -> None:
    report = run(settings())
    first, second = SCENES.halves()
    name = "layers 0-1, k 1, full, retain 0"
    shown = [arm for arm, scenes in pretended.jobs if scenes == second]
    assert shown == [BASE, name, f"{name}, index control, seed 0", f"{name}, index control, seed 1"]
    assert sum(scenes == first for _, scenes in pretended.jobs) == 1 + 4 * 3
    assert report.confirmation is not None
    base, winner, controls = report.confirmation.rows
    assert (base.name, winner.name, len(controls.arms)) == (BASE, name, 2)
    difference = report.confirmation.to_controls["chair_s"]
    assert difference.value == pytest.approx(0.3 - 0.45)
    assert (report.verdict, report.confirmation.to_default) == (Verdict.CONFIRMED, {})
    # One scene of 20 less is no certain difference, and the controls do as well.
    pretended.behaviour = {"layers": (0.45, 0.0)}
    report = run(settings())
    assert report.confirmation is not None
    assert (report.verdict, report.confirmation.beats_controls) == (Verdict.NOT_CONFIRMED, False)


@pytest.mark.parametrize("torn", [b"", b'{"arm": {"name": "layers 0'])
def test_an_interrupted_sweep_resumes(pretended: Pretended, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "sweep.jsonl"
    whole = run(settings())
    expected, pretended.jobs = list(pretended.jobs), []
    pretended.stop_after = 5
    with pytest.raises(KeyboardInterrupt), ResultsFile(path, settings().as_dict()) as file:
        run(settings(), file)
    with path.open("ab") as opened:
        opened.write(torn)
    pretended.stop_after = None
    with ResultsFile(path, settings().as_dict()) as file:
        report = run(settings(), file)
    assert pretended.jobs == expected  # every job once
    assert report.resumed == 5
    assert report.as_dict() == whole.as_dict() | {"resumed": 5}
    lines = path.read_bytes().splitlines()
    assert len(lines) == 1 + len(expected)
    # A finished sweep prints the same result without any work.
    pretended.jobs = []
    with ResultsFile(path, settings().as_dict()) as file:
        again = run(settings(), file)
    assert pretended.jobs == []
    assert again.as_dict() == whole.as_dict() | {"resumed": 13}
    assert path.read_bytes().splitlines() == lines


def test_a_file_with_the_old_name_of_retain_is_resumed(pretended: Pretended, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with ResultsFile(path, settings().as_dict()) as file:
        whole = run(settings(), file)
    path.write_text(path.read_text().replace("retain", "residual"))
    assert '"residuals": [0.0]' in path.read_text()
    pretended.jobs = []
    with ResultsFile(path, settings().as_dict()) as file:
        again = run(settings(), file)
    assert pretended.jobs == []
    assert again.as_dict() == whole.as_dict() | {"resumed": 13}


def test_a_killed_sweep_resumes(pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves the bytes that the system holds of the file, and releases its lock."""
    running, left = tmp_path / "running.jsonl", tmp_path / "sweep.jsonl"

    def killed(*request: Any) -> Any:
        for done, result in enumerate(pretended(*request)):
            if done == 3:
                shutil.copy(running, left)
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(experiment, "run_jobs", killed)
    with pytest.raises(KeyboardInterrupt), ResultsFile(running, settings().as_dict()) as file:
        run(settings(), file)
    monkeypatch.setattr(experiment, "run_jobs", pretended)
    pretended.jobs.clear()
    with ResultsFile(left, settings().as_dict()) as file:
        report = run(settings(), file)
    assert report.resumed == 3
    assert len(pretended.jobs) == 13 - 3 + 4


@pytest.mark.parametrize("changed", [{"weights": "1" * 64}, {"seeds": 3}, {"objective": "chair_i"}, {"guards": ()}])
def test_the_file_of_another_sweep_is_refused_and_unchanged(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "sweep.jsonl"
    with ResultsFile(path, settings().as_dict()):
        pass
    before = path.read_bytes()
    name = next(iter(changed))
    with pytest.raises(UsageError, match=name), ResultsFile(path, settings(**changed).as_dict()):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"notes without an end",
        b"notes\nof mine",
        b'{"schema": 1, "kind": "else"}\n{"torn',
        b'{"schema": 2, "kind": "qkedit laboratory", "settings": {}}\n',
        b"[]\n",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_a_file_that_no_sweep_wrote_is_refused_and_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError), ResultsFile(path, settings().as_dict()):
        pass
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with ResultsFile(path, settings().as_dict()):
        pass
    path.write_bytes(path.read_bytes() + b'{"key": 1}\n')
    with pytest.raises(QkeditError, match="line 2"), ResultsFile(path, settings().as_dict()):
        pass


def test_an_incomplete_first_line_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with ResultsFile(path, settings().as_dict()):
        pass
    whole = path.read_bytes()
    for length in (0, 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with ResultsFile(path, settings().as_dict()):
            pass
        assert path.read_bytes() == whole
    assert json.loads(whole)["settings"]["scenes"] == SCENES.as_dict()


def test_a_second_sweep_with_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with (
        ResultsFile(path, settings().as_dict()),
        pytest.raises(QkeditError, match="another run"),
        ResultsFile(path, settings().as_dict()),
    ):
        pass


def test_an_unwritable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QkeditError, match="cannot be written"), ResultsFile(tmp_path / "none" / "s.jsonl", {}):
        pass


def test_spared_heads_are_part_of_the_experiment(pretended: Pretended) -> None:
    spared = settings(spare="induction")
    assert spared.as_dict() == settings().as_dict() | {"spare": "induction"}
    arms = [arm for cell in spared.cells() for arm in (cell.arm(), *cell.controls("index", 2))]
    assert {arm.steer.spare for arm in arms if arm.steer} == {"induction"}
    report = replace(run(settings()), settings=settings(protect=3, spare="induction"))
    shown = StringIO()
    Console(width=120, file=shown).print(SweepTables(report))
    assert "4 cells, protect sink:3, spare induction by chair_s" in shown.getvalue()


def test_a_folded_product_is_part_of_the_experiment_and_of_cells_and_controls() -> None:
    folded = settings(product="folded")
    assert folded.as_dict() == settings().as_dict() | {"product": "folded"}
    arms = [arm for cell in folded.cells() for arm in (cell.arm(), *cell.controls("index", 2))]
    assert {arm.steer.product for arm in arms if arm.steer} == {"folded"}


def test_protection_is_part_of_the_experiment_and_of_cells_and_controls() -> None:
    plain, protected = settings(), settings(protect=3)
    assert "protect" not in plain.as_dict()  # files begun without the option can be resumed
    assert protected.as_dict() == plain.as_dict() | {"protect": 3}
    for before, cell in zip(plain.cells(), protected.cells(), strict=True):
        assert cell.name == f"{before.name}, protect sink:3"
        arms = (cell.arm(), *cell.controls("index", 2))
        assert [arm.steer.protect for arm in arms if arm.steer] == [3, 3, 3]
    with pytest.raises(UsageError, match="cannot protect"):
        settings(channels=("symmetric",), protect=3)


def test_the_grid_has_every_combination_once_with_matching_controls() -> None:
    given = settings(channels=("full", "antisymmetric"), retains=(0.0, 0.5), seeds=3)
    cells = given.cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 2
    arms = given.arms()
    assert len({arm.name for arm in arms}) == len(arms) == 1 + 16 * 4
    assert arms[0] == Arm(BASE)
    cell = Candidate("2-3", "all", 2, None, "antisymmetric", 0.5)
    edit = cell.arm().steer
    assert edit is not None
    for seed, arm in enumerate(cell.controls("index", 3)):
        assert arm.steer is not None
        drawn = arm.steer.suppression
        assert (drawn.control, drawn.seed) == ("index", seed)
        assert (drawn.k, drawn.channel, drawn.retain) == (2, "antisymmetric", 0.5)
        assert (arm.steer.layers, arm.steer.heads) == (edit.layers, edit.heads)


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "mean_words"},
        {"objective": "beauty"},
        {"seeds": 0},
        {"scenes": SceneRange(3, world=SMALL.name)},
        {"control": "norm", "channels": ("full", "symmetric")},
        {"control": "none?"},
        {"channels": ("sideways",)},
        {"retains": (1.0,)},
        {"ks": (0,)},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        settings(**wrong)


def test_repeated_parts_of_a_list_count_once() -> None:
    assert alternatives("0-1; 2,3;mid;0-1") == ("0-1", "2,3", "mid")
    assert whole_numbers("1, 2,1", "--k") == (1, 2)
    assert shares("0,.5", "--retain") == (0.0, 0.5)
    assert names("full,symmetric", "--channel") == ("full", "symmetric")
    assert guards("recall:0.02, f1_random:0") == (Guard("recall", 0.02), Guard("f1_random", 0.0))
    assert guards("none") == ()


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (alternatives, "0-1;;2"),
        (lambda text: whole_numbers(text, "--k"), "1,two"),
        (lambda text: whole_numbers(text, "--k"), ""),
        (lambda text: shares(text, "--retain"), "half"),
        (guards, "recall"),
        (guards, "recall:much"),
        (guards, "recall:-0.1"),
        (guards, "recall:nan"),
        (guards, "mean_words:1"),
        (guards, "cider:0.8"),
        (guards, "beauty:1"),
    ],
)
def test_invalid_lists_are_refused(read: Any, text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_equal_alternatives_of_layers_are_merged_and_unknown_layers_refused() -> None:
    asked: dict[str, Any] = {
        "ks": (1,),
        "channels": ("full",),
        "retains": (0.0,),
        "control": "index",
        "seeds": 1,
        "objective": "chair_s",
        "guards": (),
        "scenes": SceneRange(4, world=SMALL.name),
    }
    prepared = prepare(ModelSpec(SMALL_DEMO), layers=("2-3", "3,2", "0.25-0.5", "all"), **asked)
    assert prepared.layers == ("2-3", "0-7")
    assert prepared.eval_set == make_eval_set(SceneRange(4, world=SMALL.name)).digest()
    with pytest.raises(UsageError, match="beyond"):
        prepare(ModelSpec(SMALL_DEMO), layers=("7-8",), **asked)
    with pytest.raises(UsageError, match="takes 20 of 32 modes of a head, so no index-matched control exists"):
        prepare(ModelSpec(SMALL_DEMO), layers=("2-3",), **{**asked, "ks": (1, 20)})


def test_a_demonstration_without_matched_controls_is_refused() -> None:
    options = SteerOptions("2-3", suppression=Suppression(k=20), device="cpu")
    with pytest.raises(UsageError, match="takes 20 of 32 modes of a head, so no index-matched control"):
        demonstrate(ModelSpec(SMALL_DEMO), demonstration_arms(options, 1), SceneRange(4, world=SMALL.name), 1)
