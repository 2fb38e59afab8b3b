"""Test `qkedit demo` and `qkedit sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qkedit.cli.application import made_command
from qkedit.demo.scenes import with_article
from qkedit.laboratory import experiment, measures
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.eval_set import HELD_OUT_SEED, make_eval_set
from qkedit.laboratory.worker import Job, JobResult, ModelSpec
from tests.cli.command import qkedit

eval_set_about = cache(make_eval_set)
SMALL = ("--scenes", "6", "--seeds", "2", "--workers", "1")


def pretend(model_spec: ModelSpec, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, JobResult]]:
    """Answer without a model: the arm decides how many captions name absent objects."""
    for job in jobs:
        eval_set = eval_set_about(job.scenes)
        invented = sum(map(ord, job.arm.name)) % len(eval_set.scenes)
        captions = []
        for place, scene in enumerate(eval_set.scenes):
            absent = next(kind for kind in ("plate", "boat", "tree", "car") if kind not in scene.kinds)
            captions.append(scene.caption + (f" And {with_article(absent)}." if place < invented else ""))
        texts = tuple("Yes." if (place + invented) % 3 else "No." for place in range(len(eval_set.asked)))
        edits = (0.5, 0.25) if job.arm.steer is not None else (None, None)
        yield job, JobResult(EvalSetAnswers(tuple(captions), texts), 1.0, *edits)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "run_jobs", pretend)
    monkeypatch.setattr(measures, "RESAMPLES", 100)


@pytest.fixture(autouse=True)
def in_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_demo_shows_every_arm_and_measure(pretended: None, tmp_path: Path) -> None:
    result = qkedit("demo", *SMALL, "--all-arms", "--plot", tmp_path / "demo.png")
    assert result.code == 0
    for name in ("base", "edited", "control, index", "control, norm", "SCR", "SCR, uniform", "DSCR", "edited + DSCR"):
        assert f"\n{name} " in result.stdout
    for title in (
        "CHAIR_s %",
        "CHAIR_i %",
        "recall %",
        "words",
        "CIDEr (words, not PTB tokens)",
        "Adversarial q.",
        "accuracy %",
        "F1 %",
        "HR %",
    ):
        assert title in result.stdout
    closing = result.stdout.partition("In brackets")[2]
    assert "Edit: 50% of the energy of the query-key products removed, a strong edit." in closing
    assert "\nVerdict: " in closing
    assert "\nNext: " in closing
    tables = result.stdout.partition("In brackets")[0].splitlines()
    assert max(map(len, tables)) <= 80
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.format == "PNG"


def test_demo_shows_the_arms_of_each_method_alone_by_default(pretended: None) -> None:
    shown = qkedit("demo", *SMALL).stdout
    for name in ("base", "edited", "control, index", "SCR", "SCR, uniform", "DSCR"):
        assert f"\n{name} " in shown
    assert "norm" not in shown.partition("In brackets")[0]
    assert "edited +" not in shown


def test_demo_warns_of_a_model_that_was_edited_before(pretended: None, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    assert qkedit("steer", "demo", "--layers", "2", "--out", edited).code == 0
    warning = "was edited before, and is edited again here"
    assert warning in qkedit("demo", edited, *SMALL).stderr
    assert warning not in qkedit("demo", *SMALL).stderr


def test_demo_prints_the_same_figures_as_json(pretended: None) -> None:
    result = qkedit("demo", *SMALL, "--json", "--layers", "2-3", "--k", "2")
    document = result.document
    assert (document["command"], document["status"], document["layers"]) == ("demo", "done", [2, 3])
    arms = {arm["name"]: arm for arm in document["arms"]}
    assert arms["edited"]["arms"][0]["steer"]["k"] == 2
    assert [arm["steer"]["seed"] for arm in arms["control, index"]["arms"]] == [0, 1]
    assert arms["base"]["measures"]["chair_s"]["difference"] is None
    figure = arms["SCR"]["measures"]["chair_s"]
    assert figure["difference"]["value"] == pytest.approx(
        figure["interval"]["value"] - arms["base"]["measures"]["chair_s"]["interval"]["value"]
    )
    assert set(arms["SCR"]["measures"]) == set(measures.MEASURES)


def test_the_crowded_world_is_scored_by_its_own_kinds(pretended: None, tmp_path: Path) -> None:
    """Every arm repeats the scene's caption; that of the base also names an absent object in some scenes."""
    result = qkedit("demo", *SMALL, "--world", "crowded", "--json", "--save", tmp_path / "saved")
    assert result.code == 0
    document = result.document
    assert document["scenes"] == {"count": 6, "seed": HELD_OUT_SEED, "first": 0, "world": "crowded"}
    (base,) = (arm["measures"] for arm in document["arms"] if arm["name"] == "base")
    assert base["chair_s"]["interval"]["value"] == pytest.approx(sum(map(ord, "base")) % 6 / 6)
    assert base["recall"]["interval"]["value"] == 1
    assert '"iscrowd": 1' in (tmp_path / "saved" / "scenes" / "instances.json").read_text(encoding="utf-8")


def test_empty_answers_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty captions have no hallucination, and empty answers count as yes in POPE."""

    def silent(model_spec: ModelSpec, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, JobResult]]:
        for job, result in pretend(model_spec, jobs, workers):
            says_nothing = job.arm.name in ("SCR", "edited")
            answers = EvalSetAnswers(("", *result.answers.captions[1:]), (" ",) * len(result.answers.yes_no))
            yield job, replace(result, answers=answers) if says_nothing else result

    monkeypatch.setattr(experiment, "run_jobs", silent)
    monkeypatch.setattr(measures, "RESAMPLES", 10)
    warnings = qkedit("demo", *SMALL, "--json").document["warnings"]
    assert warnings[0] == "empty captions contain no hallucination: there are 1 of edited (6), 1 of SCR (6)"
    assert warnings[1].startswith("empty answers count as yes: there are ")


def test_saved_answers_of_demo_can_be_scored_and_compared(pretended: None, tmp_path: Path) -> None:
    place = tmp_path / "saved"
    shown = qkedit("demo", *SMALL, "--save", place, "--json").document
    values = {
        arm["name"]: {name: figure["interval"]["value"] for name, figure in arm["measures"].items()}
        for arm in shown["arms"]
    }
    compared = qkedit("compare", place / "base", place / "scr", "--json").document
    found = {
        (split["benchmark"], split["split"], metric["metric"]): (metric["a"], metric["b"])
        for split in compared["results"]
        for metric in split["differences"]
    }
    assert found["chair", None, "chair_s"] == (values["base"]["chair_s"], values["SCR"]["chair_s"])
    assert found["pope", "popular", "hr"] == (values["base"]["hr_popular"], values["SCR"]["hr_popular"])
    scored = qkedit(
        "score",
        "pope",
        "--answers",
        place / "edited" / "pope_random.jsonl",
        "--data",
        place / "scenes",
        "--split",
        "random",
        "--json",
    ).document
    assert scored["results"][0]["metrics"]["accuracy"] == values["edited"]["accuracy_random"]
    again = qkedit("demo", *SMALL, "--save", place)
    assert again.code == 2
    assert "exists" in again.sentence()


def test_sweep_ranks_confirms_resumes_and_plots(pretended: None, tmp_path: Path) -> None:
    request = (
        "sweep",
        *SMALL,
        "--layers",
        "2-3;4-5",
        "--k",
        "2",
        "--no-worse",
        "none",
        "--out",
        tmp_path / "s.jsonl",
    )
    first = qkedit(*request, "--plot", tmp_path / "s.svg")
    assert first.code == 0
    assert "4 cells by chair_s" in first.stdout
    assert "The best cell on 3 other scenes: layers" in first.stdout
    assert "Not confirmed: on the other half, the best cell does not certainly improve chair_s" in (
        " ".join(first.stdout.split())
    )
    assert max(map(len, first.stdout.partition("Not confirmed")[0].splitlines())) <= 80
    assert b"<svg" in (tmp_path / "s.svg").read_bytes()
    document = qkedit(*request, "--json").document
    assert document["resumed"] == 13
    assert len(document["cells"]) == 4
    best = document["cells"][0]
    assert best["cell"] == document["winner"]
    assert document["verdict"] == "not confirmed"
    values = [cell["objective"]["interval"]["value"] for cell in document["cells"]]
    assert values == sorted(values)
    assert document["confirmation"]["to_controls"]["chair_s"]["value"] is not None
    refused = qkedit(*request, "--objective", "chair_i")
    assert refused.code == 2
    assert "objective" in refused.sentence()


@pytest.mark.parametrize(
    "wrong",
    [
        ("demo", "--scenes", "1"),
        ("demo", "--seeds", "0"),
        ("demo", "--workers", "0"),
        ("demo", "--world", "large"),
        ("demo", "--layers", "9"),
        ("demo", "--plot", "demo.txt"),
        ("sweep", "--layers", "2-3;;"),
        ("sweep", "--k", "many"),
        ("sweep", "--channel", "sideways"),
        ("sweep", "--retain", "2"),
        ("sweep", "--objective", "beauty"),
        ("sweep", "--no-worse", "beauty:1"),
        ("sweep", "--control", "none"),
        ("sweep", "--out", "sweep.csv"),
    ],
    ids=" ".join,
)
def test_invalid_requests_are_refused_before_any_work(wrong: tuple[str, ...], monkeypatch: Any) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("the work began")

    monkeypatch.setattr(experiment, "run_jobs", never)
    small = () if "--scenes" in wrong else ("--scenes", "4")
    result = qkedit(*wrong, *small)
    assert result.code == 2
    assert result.sentence()


def test_both_commands_use_scenes_outside_the_training_data() -> None:
    for name in ("demo", "sweep"):
        flags = {parameter.name: parameter.default for parameter in made_command(name).params}
        assert flags["scene_seed"] == HELD_OUT_SEED


def test_both_commands_read_a_configuration_file(pretended: None, tmp_path: Path) -> None:
    (tmp_path / "laboratory.yaml").write_text("scenes: 4\nseeds: 1\nworkers: 1\nlayers: 2-3\nk: 3\n")
    shown = qkedit("demo", "--config", tmp_path / "laboratory.yaml", "--json").document
    assert shown["scenes"]["count"] == 4
    swept = qkedit("sweep", "--config", tmp_path / "laboratory.yaml", "--json").document
    assert (swept["settings"]["layers"], swept["settings"]["ks"]) == (["2-3"], [3])
