"""Test the Python API: its results equal those of the commands."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

import qkedit
from qkedit.cli.command_table import COMMANDS
from qkedit.demo import SMALL_DEMO
from qkedit.laboratory import demonstration, sweep
from qkedit.selection import selection_text
from tests.cli.command import qkedit as command

QUESTIONS = [
    {"id": "1", "image": "a.png", "question": "is there a cup in the image", "truth": "yes"},
    {"id": "2", "image": "b.png", "question": "is there a tree in the image", "truth": "no"},
]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "edited"
    qkedit.steer(SMALL_DEMO, out=out, layers=range(2, 4), k=4, fsync=False)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    for name, colour in (("a.png", "navy"), ("b.png", "olive")):
        Image.new("RGB", (64, 64), colour).save(directory / name)
    return directory


def test_every_name_can_be_imported_and_is_listed() -> None:
    assert set(qkedit.__all__) <= set(dir(qkedit))
    for name in qkedit.__all__:
        assert getattr(qkedit, name) is not None


def test_every_command_has_a_function() -> None:
    """`models` and `serve` are exceptions: one prints records, the other runs until it is stopped."""
    names = {"eval": "evaluate", "demo": "demonstrate"}
    commands = {names.get(name, name.replace("-", "_")) for name in COMMANDS if not name.startswith("plugins ")}
    assert commands - set(qkedit.__all__) == {"models", "serve"}


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ("mid", "mid"),
        (3, "3"),
        (np.int64(3), "3"),
        (range(2, 6), "2-5"),
        ([7, 1, 2, 2], "1-2, 7"),
        ((index for index in (0, 4)), "0, 4"),
    ],
)
def test_layers_may_be_a_string_an_integer_a_range_or_an_iterable(chosen: object, text: str) -> None:
    assert selection_text(chosen) == text  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", [[], range(0), -1, [1, -2], 1.5, True, None, [None]])
def test_a_selection_without_valid_layers_is_refused(chosen: object) -> None:
    with pytest.raises(qkedit.QkeditError, match="names none"):
        selection_text(chosen)  # type: ignore[arg-type]


def test_a_plan_lists_the_tensors_and_bytes_of_the_run(edited: Path) -> None:
    plan = qkedit.plan(SMALL_DEMO, layers=[2, 3], k=4)
    manifest = json.loads((edited / "qkedit.json").read_text())
    assert list(plan.tensors) == [tensor["name"] for tensor in manifest["tensors"]]
    assert plan.bytes_to_write == sum(entry.nbytes for entry in plan.tensors.values())


def test_the_functions_of_an_edit_share_its_arguments() -> None:
    """Arguments of an edit have one name and default in all functions; spectra have neither controls nor outputs."""
    described = ("layers", "heads", "k", "energy", "retain", "channel", "control", "seed", "compute_dtype", "device")
    described += ("allow_text_only", "protect", "spare", "architectures")
    parameters = {name: inspect.signature(getattr(qkedit, name)).parameters for name in ("steer", "plan", "edit")}
    for name in described:
        assert len({parameters[function][name].default for function in parameters}) == 1, name
    for function in (qkedit.inspect, qkedit.demonstrate):
        for name, parameter in inspect.signature(function).parameters.items():
            assert name not in ("k", "energy", "channel", "protect", "spare") or (
                parameter.default == parameters["steer"][name].default
            )


def test_steer_runs_the_model_to_find_protected_directions_and_spared_heads(tmp_path: Path) -> None:
    report = qkedit.steer(
        SMALL_DEMO, out=tmp_path / "python", layers=2, protect="sink:3", spare="induction", fsync=False
    )
    words = (SMALL_DEMO, "--layers", "2", "--protect", "sink:3", "--spare", "induction", "--no-fsync")
    printed = command("steer", *words, "--out", tmp_path / "command")
    assert printed.code == 0
    assert "\nspared   none, since no head of these layers counts as copying\n" in printed.stdout
    weights = [(tmp_path / name / "qkedit.json").read_bytes() for name in ("python", "command")]
    assert weights[0] == weights[1]
    options = report.manifest.options
    assert options is not None
    assert options.protect is not None
    assert options.protect.sha256 is not None
    assert options.spared == {}


def test_outputs_are_verified_compared_inspected_and_applied(edited: Path, tmp_path: Path) -> None:
    assert qkedit.verify(edited, base=SMALL_DEMO).mismatches == ()
    differences = qkedit.diff(SMALL_DEMO, edited)
    assert [difference.what for difference in differences] == ["changed", "changed"]
    before, after = (qkedit.inspect(model, layers=2, heads=0).layers[0].heads[0] for model in (SMALL_DEMO, edited))
    assert before != after
    qkedit.steer(SMALL_DEMO, out=tmp_path / "delta", layers=range(2, 4), k=4, layout="delta", fsync=False)
    qkedit.apply(tmp_path / "delta", base=SMALL_DEMO, out=tmp_path / "applied", fsync=False, verify=True)
    assert list(qkedit.diff(edited, tmp_path / "applied")) == []


def test_a_loaded_model_and_a_model_name_give_the_same_text(pictures: Path) -> None:
    demo = qkedit.load(SMALL_DEMO)
    prompt = "Please describe this image in detail."
    by_file = qkedit.generate(demo, [pictures / "a.png"], prompt, max_new_tokens=8)
    with Image.open(pictures / "a.png") as image:
        by_picture = qkedit.generate(SMALL_DEMO, [image], prompt, max_new_tokens=8, device="cpu")
    assert by_file.text == by_picture.text
    with_plugin = qkedit.generate(demo, [pictures / "a.png"], prompt, plugins=[qkedit.SCR()], max_new_tokens=8)
    assert with_plugin.report is not None
    assert set(with_plugin.report.plugins) == {"scr"}
    measured = qkedit.kv_coherence(demo, [pictures / "a.png"])
    assert [layer.layer for layer in measured.layers] == list(range(8))
    assert all(layer.coherence is not None for layer in measured.layers)


def test_experiments_take_the_same_arguments_as_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare arguments instead of results: both pass on the same model, arms, settings and scenes."""
    runs: list[tuple[object, ...]] = []

    def started(*arguments: object, **_: object) -> NoReturn:
        runs.append(arguments)
        raise qkedit.QkeditError("it is not run")

    monkeypatch.setattr(demonstration, "demonstrate", started)
    monkeypatch.setattr(sweep, "run_sweep", started)
    words = ["--scenes", "4", "--seeds", "2", "--device", "cpu", "--workers", "1"]
    common: dict[str, Any] = {"scenes": 4, "seeds": 2}
    with pytest.raises(qkedit.QkeditError):
        qkedit.demonstrate(layers=range(2, 4), k=3, **common)
    assert command("demo", "--layers", "2-3", "-k", "3", *words).code == 1
    with pytest.raises(qkedit.QkeditError):
        qkedit.sweep(layers=[2, range(3, 5)], ks=[2], retains=[0, 0.5], **common)
    assert command("sweep", "--layers", "2;3-4", "-k", "2", "--retain", "0,0.5", *words).code == 1
    shown, as_command, swept, swept_as_command = runs
    assert shown == as_command
    assert (swept[:2], swept[3:4]) == (swept_as_command[:2], swept_as_command[3:4])


def test_runs_are_scored_compared_and_measured(edited: Path, pictures: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    runs = {}
    for name, model in (("base", SMALL_DEMO), ("edited", edited)):
        runs[name] = qkedit.evaluate(model, "custom", data=questions, images=pictures, out=tmp_path / name)
        (again,) = qkedit.score("custom", tmp_path / name, questions)
        assert again.metrics == runs[name].scores[0].metrics
    compared = qkedit.compare(tmp_path / "base" / "result.json", tmp_path / "edited" / "result.json", resamples=100)
    assert len(compared.splits) == 1
    checks = qkedit.gate(
        tmp_path / "edited", require=["accuracy>=0"], no_worse=["accuracy:1"], baseline=[tmp_path / "base"]
    )
    assert [(check.requirement, check.passed) for check in checks] == [("accuracy>=0.0", True), ("accuracy:1.0", True)]
    with pytest.raises(qkedit.QkeditError, match="nothing is required"):
        qkedit.gate(tmp_path / "edited")
    moved = qkedit.drift(edited, pictures, base=SMALL_DEMO, max_new_tokens=4)
    assert len(moved.images) == 2
    assert qkedit.drift(edited, pictures, max_new_tokens=4).metrics == moved.metrics  # the manifest records its base
    with pytest.raises(qkedit.QkeditError, match="there is nothing to compare with"):
        qkedit.drift("demo", pictures)
