"""Test the arms of docs/rivals.md: every method with its controls, and the CPU seconds of their batches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qkedit.demo.worlds import SMALL
from qkedit.laboratory.answering import whole_prompts
from qkedit.laboratory.answering.generation import EvalSetAnswers, run_eval_set
from qkedit.laboratory.arms import CONTROLLED, RIVALS, Arm, rival_arms
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.worker import Job, JobResult
from qkedit.plugins.registry import PLUGINS, plugin_options
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import Answer
from qkedit.steering.steer_options import SteerOptions
from tests.laboratory.small_eval_sets import demo_model, few_scenes


def test_every_method_is_listed_with_its_controls() -> None:
    arms = rival_arms(SteerOptions(device="cpu"), 2)
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    groups = {arm.group: [other.name for other in arms if other.group == arm.group] for arm in arms}
    assert {"base", "edited", "SCR", "DSCR", *RIVALS} <= groups.keys()
    repeated = {group for group, members in groups.items() if len(members) > 1}
    assert repeated == {"control, index", "control, norm", *(f"{name}, random" for name in CONTROLLED)}
    assert all(len(groups[group]) == 2 for group in repeated)


def test_methods_with_a_control_have_its_option() -> None:
    has = {name: "control" in [option.name for option in plugin_options(name)] for name in RIVALS}
    assert has == {name: name in CONTROLLED for name in RIVALS}
    assert set(RIVALS) <= PLUGINS.keys()


def test_a_results_file_stores_times_of_batches_and_may_lack_them(tmp_path: Path) -> None:
    job, path = Job(Arm("base"), SceneRange(2, world=SMALL.name)), tmp_path / "results.jsonl"
    with ResultsFile(path, {}) as file:
        file.add(job, JobResult(EvalSetAnswers(("a",), ("yes",), ((2, 0.1234567), (1, 3.0))), 1.0))
    with ResultsFile(path, {}) as file:
        kept = file.result(job)
    assert kept is not None
    assert kept.answers.batches == ((2, 0.123457), (1, 3.0))
    path.write_text(re.sub(r', "batches": \[\[.*?\]\]', "", path.read_text("utf-8")), "utf-8")
    with ResultsFile(path, {}) as file:
        old = file.result(job)
    assert old is not None
    assert old.answers.batches == ()


def test_each_batch_of_a_control_has_a_new_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def respond(loaded: object, prompts: list[object], plugins: list[object], **how: int) -> list[object]:
        drawn.extend(plugin.control for plugin in plugins)  # type: ignore[attr-defined]
        return [Answer("Yes.", 1, 0.0, None, False, None, (1,), 0) for _ in prompts]

    monkeypatch.setattr(whole_prompts, "PROMPTS_AT_ONCE", 7)
    monkeypatch.setattr(whole_prompts, "respond_batch", respond)
    run_eval_set(demo_model(), few_scenes(), [PluginSettings("dola", {"control": 5})])
    assert drawn == list(range(5, 5 + len(drawn)))
    assert len(drawn) > 2
