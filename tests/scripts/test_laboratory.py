"""Test that the document of the laboratory is complete, and that verdicts follow the stated rules."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from qkedit.demo.scenes import with_article
from qkedit.demo.worlds import SMALL
from qkedit.errors import CheckpointError, QkeditError
from qkedit.laboratory import experiment, measures
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.measures import Outcome
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.worker import JobResult, ModelSpec
from tests.scripts.loading import SCRIPTS, load_script

eval_set_about = cache(make_eval_set)
FORTY = SceneRange(40, seed=5, world=SMALL.name)


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a module of the script."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "documents"))  # like Python for a script
    yield lambda name: import_module(f"laboratory_document.{name}")
    for name in [name for name in sys.modules if name.startswith("laboratory_document")]:
        del sys.modules[name]


def inventing(eval_set: EvalSet, share: float) -> EvalSetAnswers:
    """Return captions with absent objects in a share of the scenes, and the answer yes to every question."""
    captions = []
    for place, scene in enumerate(eval_set.scenes):
        absent = next(kind for kind in ("plate", "boat", "tree", "car") if kind not in scene.kinds)
        more = f" And {with_article(absent)}." if place < share * len(eval_set.scenes) else ""
        captions.append(scene.caption + more)
    return EvalSetAnswers(tuple(captions), ("Yes.",) * len(eval_set.asked))


def grid() -> SweepSettings:
    return SweepSettings(
        model="demo-small",
        weights="",
        dtype="float32",
        device="cpu",
        layers=("0-1", "2-3", "4-5", "6-7"),
        ks=(1, 2),
        channels=("full", "symmetric", "antisymmetric"),
        retains=(0.0,),
        control="index",
        seeds=2,
        objective="chair_s",
        guards=(),
        scenes=FORTY,
        eval_set="",
    )


def outcomes(share_of: Callable[[Arm], float]) -> Callable[[Arm], Outcome]:
    eval_set = eval_set_about(FORTY)
    return cache(lambda arm: scored(arm, eval_set, JobResult(inventing(eval_set, share_of(arm)), 1.0)))


def as_claimed(arm: Arm) -> float:
    """Simulate the papers' claims: only dominant, symmetric, middle modes have an effect."""
    if arm.steer is None or arm.steer.suppression.control != "none":
        return 0.5
    acts = arm.steer.suppression.channel != "antisymmetric" and arm.steer.layers in ("2-3", "4-5")
    return 0.1 if acts else 0.5


def against_the_claims(arm: Arm) -> float:
    if arm.steer is None:
        return 0.5
    if arm.steer.suppression.control != "none":
        return 0.4
    acts = arm.steer.suppression.channel != "symmetric" and arm.steer.layers in ("0-1", "6-7")
    return 0.1 if acts and arm.steer.suppression.channel == "antisymmetric" else 0.6 if not acts else 0.5


CONTRASTS = ("dominant − base", "dominant − random", "symmetric − antisymmetric", "middle − early and late")


@pytest.mark.parametrize(
    ("share_of", "expected"),
    [
        (as_claimed, dict.fromkeys(CONTRASTS, "supported")),
        (against_the_claims, dict.fromkeys(CONTRASTS, "contradicted")),
        (lambda arm: 0.5, dict.fromkeys(CONTRASTS, "undecided")),
    ],
    ids=["as claimed", "against the claims", "no difference"],
)
def test_verdicts_follow_the_rules(
    document: Callable[[str], ModuleType], share_of: Callable[[Arm], float], expected: dict[str, str]
) -> None:
    found = list(document("claims").contrasts(grid(), outcomes(share_of)))
    verdicts = {one.name: one.verdict for one in found if one.measure.name == "chair_s" and one.verdict}
    assert verdicts == expected
    # The costs are shown, without a claim about them.
    assert all(not one.verdict for one in found if one.measure.name in ("recall", "f1_adversarial"))
    assert {one.measure.name for one in found} == {"chair_s", "hr_adversarial", "recall", "f1_adversarial"}


def test_of_three_pairs_the_second_is_in_the_middle(document: Callable[[str], ModuleType]) -> None:
    def share_of(arm: Arm) -> float:
        full = arm.steer is not None and arm.steer.suppression.control == "none"
        return {"2-3": 0.1, "0-1": 0.3}.get(arm.steer.layers, 0.5) if full and arm.steer is not None else 0.5

    settings = replace(grid(), layers=("0-1", "2-3", "4-5"))
    found = {
        one.name: one
        for one in document("claims").contrasts(settings, outcomes(share_of))
        if one.measure.name == "chair_s"
    }
    # Early layers lower CHAIR_s by 0.2 and late ones not at all.
    assert found["middle − base"].difference.value == pytest.approx(-0.4)
    assert found["early and late − base"].difference.value == pytest.approx(-0.1)
    assert found["middle − early and late"].difference.value == pytest.approx(-0.3)
    assert found["middle − early and late"].verdict == "supported"


def test_pairs_of_layers_are_those_of_the_model(monkeypatch: pytest.MonkeyPatch, document: Any) -> None:
    script = load_script("laboratory")
    assert script.layer_pairs("demo") == ("0-1", "2-3", "4-5")
    for count, last in ((7, "4-6"), (8, "6-7")):
        monkeypatch.setattr(script, "attention_stack", lambda checkpoint, n=count: SimpleNamespace(layers=range(n)))
        assert script.layer_pairs("demo")[-1] == last
        assert script.layer_pairs("demo")[:2] == ("0-1", "2-3")


def test_numbers_of_modes_whose_controls_cannot_be_stored_are_left_out(
    monkeypatch: pytest.MonkeyPatch, document: Callable[[str], ModuleType]
) -> None:
    """A random control of k 2 changes less than the stored dtype can hold."""
    storable = document("storable")

    def edited(model: Any, plan: Any) -> Any:
        if plan.suppression.k == 2 and plan.suppression.control != "none":
            raise CheckpointError("too small", where="model", remedy="suppress more")
        return nullcontext()

    monkeypatch.setattr(storable, "load", lambda *_, **__: SimpleNamespace(model=None))
    monkeypatch.setattr(storable, "make_plan", lambda checkpoint, steer: steer)
    monkeypatch.setattr(storable, "edit_as_stored", edited)
    found = storable.with_storable_ks(grid(), ModelSpec("demo-small"))
    assert (found.ks, found.layers, found.seeds) == ((1,), grid().layers, grid().seeds)
    assert storable.left_out_sentence((1, 2), (1,)).startswith(" k 2 is left out")
    assert storable.left_out_sentence((1, 2), (1, 2)) == ""
    with pytest.raises(QkeditError, match="no number of modes"):
        storable.with_storable_ks(replace(grid(), ks=(2,)), ModelSpec("demo-small"))


def test_contrasts_pool_all_their_cells(document: Callable[[str], ModuleType]) -> None:
    found = {
        one.name: one.difference
        for one in document("claims").contrasts(grid(), outcomes(as_claimed))
        if one.measure.name == "chair_s"
    }
    # Two of four quarters have an effect.
    assert found["dominant − base"].value == pytest.approx(-0.2)
    assert found["random − base"].value == 0
    assert found["symmetric − antisymmetric"].value == pytest.approx(-0.2)
    assert found["middle − early and late"].value == pytest.approx(-0.4)
    assert found["dominant − random"].groups == FORTY.count


def test_the_document_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, document: Any) -> None:
    def pretend(model_spec: Any, jobs: Any, workers: int) -> Iterator[Any]:
        for job in jobs:
            share = (sum(map(ord, job.arm.name)) % 5) / 5 if job.arm.name != BASE else 0.5
            yield job, replace(JobResult(inventing(eval_set_about(job.scenes), share), 1.0), energy_removed=0.5)

    monkeypatch.setattr(experiment, "run_jobs", pretend)
    monkeypatch.setattr(measures, "RESAMPLES", 50)
    script = load_script("laboratory")
    monkeypatch.setattr(script, "KS", (1,))
    sizes = ["--model", "demo-small", "--scenes", "4", "--swept", "4", "--seeds", "1", "--workers", "1"]
    monkeypatch.setattr(
        sys, "argv", ["laboratory", "--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs"), *sizes]
    )
    script.main()
    text = (tmp_path / "docs" / "laboratory.md").read_text()
    for heading in re.findall(
        r"^## .*$", (SCRIPTS / "documents" / "laboratory_document" / "laboratory.md").read_text(), re.M
    ):
        assert heading in text
    assert "$" not in text
    pictures = re.findall(r"\(images/(laboratory-\w+\.png)\)", text)
    assert len(pictures) == 3
    for name in pictures:
        with Image.open(tmp_path / "docs" / "images" / name) as picture:
            assert min(picture.size) > 300
    # Every table has as many cells in each row.
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    for arm in ("edited", "control, index", "SCR, uniform", "DSCR", "SCR, 4"):
        assert text.count(f"| {arm} |") == 4
    # A second run repeats no experiment; its plots are tested above.
    for module, drawn in ((script, "arms_plot"), (script, "sweep_plot"), (script.spectra, "plot")):
        monkeypatch.setattr(module, drawn, lambda *_: b"")
    monkeypatch.setattr(script.spectra, "untrained_twin", lambda model, *_, **__: model)
    monkeypatch.setattr(experiment, "run_jobs", lambda model_spec, jobs, workers: iter(() if not jobs else 1 / 0))
    script.main()
