"""Test `--edit` of the commands that run a model, and `eval --each`, on the demo and its scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image
from rich.console import Console

import qkedit
from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import UsageError
from qkedit.evaluation.files.result_files import read_scores
from qkedit.evaluation.runs.arms import arms_of, read_arms
from qkedit.evaluation.statistics.arms import compare_with_base
from qkedit.evaluation.statistics.comparison import compare
from qkedit.evaluation.statistics.intervals import holm, interval
from qkedit.plugins.settings import parse_plugins
from qkedit.prompts import CAPTION_PROMPT
from qkedit.report.runs.arms import RunArmsTable
from qkedit.runtime import generation
from tests.cli.command import qkedit as run
from tests.cli.test_eval import contents, untimed

HOW = ("--device", "cpu", "--dtype", "float32", "--max-new-tokens", "3")
SCR = "scr:layers=0-1,sources=4"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return scenes, two deltas of the demo, and the checkpoints of both and of the first one."""
    place = tmp_path_factory.mktemp("edits")
    write_scenes(list(make_scenes(3, seed=1, world=SMALL)), place / "scenes")
    for name, layers, k in (("a", "2-3", 4), ("b", "3-5", 2)):
        steer(SMALL_DEMO, out=place / name, layers=layers, k=k, layout="delta", device="cpu", fsync=False)
    qkedit.apply(place / "a", base=SMALL_DEMO, out=place / "a full", fsync=False)
    qkedit.apply([place / "a", place / "b"], base=SMALL_DEMO, out=place / "both", fsync=False)
    return place


@pytest.fixture
def picture(place: Path) -> Path:
    return place / "scenes" / "images" / "scene_000000.png"


def eval_arguments(place: Path, *more: str | Path, model: str | Path = SMALL_DEMO) -> tuple[str | Path, ...]:
    scenes = place / "scenes"
    return ("eval", model, "-b", "pope.random", "--data", scenes, "--images", scenes / "images", *HOW, *more)


def test_generate_compares_edits_with_one_loaded_model(place: Path, picture: Path) -> None:
    edits = ("--edit", place / "a", "--edit", place / "b")
    with patch.object(generation, "load", wraps=generation.load) as load:
        found = run("generate", SMALL_DEMO, *edits, "--compare", "--plugin", SCR, "--image", picture, *HOW, "--json")
    assert load.call_count == 1
    both = [str(place / name) for name in ("a", "b")]
    answers = found.document["answers"]
    assert [one["edits"] for one in answers] == [[], both, both]
    assert [one["column"] for one in answers] == ["model", " + ".join(both), " + ".join([*both, SCR])]
    how: Any = {"max_new_tokens": 3}
    with Image.open(picture) as image:
        for answer, model, plugins in zip(
            answers,
            (SMALL_DEMO, place / "both", place / "both"),
            ([], [], [qkedit.SCR(layers="0-1", sources=4)]),
            strict=True,
        ):
            loaded = qkedit.load(str(model), dtype="float32")
            assert answer["text"] == qkedit.generate(loaded, [image], CAPTION_PROMPT, plugins=plugins, **how).text


def test_drift_of_an_edit_equals_drift_of_the_edited_checkpoint(place: Path, picture: Path) -> None:
    with patch.object(generation, "load", wraps=generation.load) as load:
        found = run("drift", SMALL_DEMO, "--edit", place / "a", "--images", picture, *HOW, "--json").document
        assert load.call_count == 1
    stored = qkedit.drift(place / "a full", picture, base=SMALL_DEMO, max_new_tokens=3, dtype="float32").result()
    assert found["results"] == [json.loads(json.dumps(stored))]
    assert found["edits"] == [str(place / "a")]
    typed = qkedit.drift(SMALL_DEMO, picture, base=SMALL_DEMO, edits=[place / "a"], max_new_tokens=3, dtype="float32")
    assert typed.result() == stored


def test_evaluating_an_edit_equals_evaluating_the_edited_checkpoint(place: Path, tmp_path: Path) -> None:
    how: Any = {"data": place / "scenes", "images": place / "scenes" / "images", "splits": ["random"], "limit": 2}
    found, stored = (
        qkedit.evaluate(model, "pope", out=tmp_path / name, edits=edits, **how)
        for model, name, edits in ((SMALL_DEMO, "edit", [place / "a"]), (place / "a full", "stored", []))
    )
    assert [score.items for score in found.scores] == [score.items for score in stored.scores]
    with pytest.raises(UsageError, match="edits was"):
        qkedit.evaluate(SMALL_DEMO, "pope", out=tmp_path / "edit", edits=[place / "b"], **how)


def test_each_arm_equals_a_separate_run_with_one_loaded_model(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "arms"
    arms: tuple[str | Path, ...] = ("--edit", place / "a", "--edit", place / "b", "--plugin", SCR, "--limit", "2")
    with patch.object(generation, "load", wraps=generation.load) as load:
        done = run(*eval_arguments(place, *arms, "--each", "--out", out), "--json")
        assert load.call_count == 1
    assert done.code == 0, done.stderr
    names = ["base", "a", "b", "scr"]
    assert [arm["name"] for arm in done.document["arms"]] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for name, flags in {"a": arms[:2], "scr": arms[4:6]}.items():
        run(*eval_arguments(place, *flags, "--limit", "2", "--out", tmp_path / name))
        assert untimed(contents(tmp_path / name)) == untimed(contents(out / name))
    before = contents(out)
    with patch.object(generation, "load", side_effect=AssertionError):
        again = run(*eval_arguments(place, *arms, "--each", "--out", out), "--json").document
    assert [arm["asked"] for arm in again["arms"]] == [0] * 4
    assert contents(out) == before

    # Each arm's differences equal those of `compare`, and all p-values are corrected together.
    runs = read_arms(out, names, ["pope.random"])
    assert [score.benchmark for score in runs["a"].scores] == ["pope", "time"]
    assert [item.id for item in runs["a"].scores[1].items] == [item.id for item in runs["a"].scores[0].items]
    against = compare_with_base("base", runs)
    singly = {name: compare(runs["base"], runs[name]) for name in names[1:]}
    tested = []
    for name, comparison in singly.items():
        for one, other in zip(comparison.splits[0].metrics, against.arms[name].splits[0].metrics, strict=True):
            assert one.difference == other.difference
            tested.append((one.difference.p if other.better.value != "neither" else None, other.p_corrected))
    assert [corrected for _, corrected in tested] == list(holm([p for p, _ in tested]))
    assert done.document["against_base"] == json.loads(json.dumps(against.as_dict()))
    scenes: Any = place / "scenes"
    how: Any = {"images": scenes / "images", "splits": ["random"], "limit": 2, "dtype": "float32", "plugins": [SCR]}
    with pytest.raises(UsageError, match="max_new_tokens"):  # the same directories, another run
        qkedit.evaluate_arms(SMALL_DEMO, "pope", data=scenes, out=out, edits=[place / "a", place / "b"], **how)

    with (console := Console(width=80)).capture() as captured:
        console.print(RunArmsTable(against))
    table = captured.get().splitlines()
    row = next(number for number, line in enumerate(table) if line.startswith("accuracy"))
    assert [line.split()[0] for line in table[row + 1 : row + 5]] == names


def test_arms_of_one_plugin_are_told_apart_by_their_options(place: Path, tmp_path: Path) -> None:
    """Every figure has its interval, in a table of 80 columns whose long names are folded at their options."""
    plugins = ["vcd", "vcd:alpha=0", "vcd:alpha=0.25,beta=0.2,seed=3"]
    flags = [word for plugin in plugins for word in ("--plugin", plugin)]
    arguments = (*eval_arguments(place, *flags, "--limit", "4", "--each", "--out", tmp_path / "arms"),)
    printed = run(*arguments).stdout.splitlines()
    row = printed.index(next(line for line in printed if line.startswith("accuracy")))
    assert max(len(line.rstrip()) for line in printed[: row + 7]) <= 80
    titles = [line.split()[0] for line in printed[row + 1 : row + 6]]
    assert titles == ["base", "vcd", "vcd:alpha=0", "vcd:alpha=0.25,", "beta=0.2,seed=3"]

    found = run(*arguments, "--json").document
    assert [arm["name"] for arm in found["arms"]] == ["base", "vcd", "vcd-2", "vcd-3"]
    scores = {name: read_scores(tmp_path / "arms" / name).scores[0] for name in ("base", "vcd-3")}
    compared = found["against_base"]["vcd-3"]["results"][0]["differences"]
    for difference in compared:
        of_arm, of_base = (interval(scores[name].items, difference["metric"]) for name in ("vcd-3", "base"))
        assert (difference["b"], difference["b_low"], difference["b_high"]) == (of_arm.value, of_arm.low, of_arm.high)
        assert (difference["a_low"], difference["a_high"]) == (of_base.low, of_base.high)
    accuracy = next(one for one in compared if one["metric"] == "accuracy")
    low, high = (f"{accuracy[end]:.3f}" for end in ("b_low", "b_high"))
    assert f"{accuracy['b']:.3f} {low} to {high} {accuracy['value']:+.3f} " in " ".join(printed[row + 4].split())


def test_an_invalid_arm_is_refused_before_the_first_question(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "arms"
    steer(place / "a full", out=tmp_path / "foreign", layers="2", k=1, layout="delta", device="cpu", fsync=False)
    for edit, words in ((tmp_path / "nothing", "no readable"), (tmp_path / "foreign", "not the one that was edited")):
        result = run(*eval_arguments(place, "--edit", edit, "--each", "--out", out, "--limit", "2"))
        assert result.code == 1
        assert words in result.sentence()
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "mine").touch()
    result = run(*eval_arguments(place, "--edit", place / "a", "--each", "--out", tmp_path / "other", "--limit", "2"))
    assert result.code == 2
    assert "holds files, but no run" in result.sentence()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--each",), "--each: there is only one arm"),
        (("--each", "--plugin", "none"), "--each: there is only one arm"),
        (("--each", "--edit", "nowhere"), "no readable"),
    ],
)
def test_invalid_requests_with_each_are_refused(
    place: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    result = run(*eval_arguments(place, *more, "--out", tmp_path / "out"))
    assert result.code in (1, 2)
    assert words in result.sentence()
    assert not (tmp_path / "out").exists()


def test_arms_have_unique_names() -> None:
    plugins = parse_plugins(["scr", "scr:layers=0-1", "dscr"], repeated=True) or ()
    arms = arms_of(["x/base", "y/delta", "z/delta"], plugins[:2], plugins[2:])
    assert [arm.name for arm in arms] == ["base", "base-2", "delta", "delta-2", "scr", "scr-2"]
    assert [len(arm.plugins) for arm in arms] == [1, 1, 1, 1, 2, 2]
    assert [arm.edits for arm in arms[:2]] == [(), ("x/base",)]
