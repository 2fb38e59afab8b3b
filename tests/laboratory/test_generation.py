"""Test batches against single requests, with and without plug-ins, and shared prefills against separate ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from qkedit import DSCR, SCR
from qkedit.laboratory import generation
from qkedit.laboratory.eval_set import EvalSet
from qkedit.laboratory.generation import EvalSetAnswers, run_eval_set
from qkedit.laboratory.worker import one_thread
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import Answer, respond
from tests.laboratory.small_eval_sets import demo_model, few_scenes

# Answers, including long ones, are compared up to their end or this number of tokens.
TOKENS = {"CAPTION_TOKENS": 12, "ANSWER_TOKENS": 3}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, tokens in TOKENS.items():
        monkeypatch.setattr(generation, name, tokens)
    monkeypatch.setattr(generation, "PROMPTS_AT_ONCE", 7)  # the last batch is smaller
    monkeypatch.setattr(generation, "SCENES_AT_ONCE", 2)
    with one_thread():  # with several threads, small steps wait for other processes of the machine
        yield


def one_by_one(eval_set: EvalSet, plugin: str | None = None) -> EvalSetAnswers:
    """Return the answer to each question in a separate request."""

    def answer_to(scene: int, prompt: str, tokens: int) -> str:
        shown = eval_set.scenes[scene]
        plugins = {
            None: [],
            "scr": [SCR()],
            "dscr": [DSCR(depth=torch.from_numpy(shown.depth), processor=demo_model().processor)],
        }[plugin]
        picture = Image.fromarray(shown.image)
        return respond(demo_model(), [picture], prompt, plugins, max_new_tokens=tokens).text

    captions = [answer_to(place, q.prompt, TOKENS["CAPTION_TOKENS"]) for place, q in enumerate(eval_set.captions)]
    return EvalSetAnswers(
        tuple(captions), tuple(answer_to(*asked, TOKENS["ANSWER_TOKENS"]) for asked in eval_set.asked)
    )


def test_batches_equal_single_requests_with_and_without_shared_images() -> None:
    eval_set = few_scenes()
    alone = one_by_one(eval_set)
    whole = run_eval_set(demo_model(), eval_set, share_pictures=False)
    assert whole == alone
    assert sum(count for count, _ in whole.batches) == len(eval_set.captions) + len(eval_set.asked)
    assert {count for count, _ in whole.batches} > {7}
    assert all(seconds > 0 for _, seconds in whole.batches)
    assert run_eval_set(demo_model(), eval_set, share_pictures=True) == alone
    # The comparison is meaningful only if answers differ.
    assert len(set(alone.captions)) > 1


@pytest.mark.parametrize("plugin", ["scr", "dscr"])
def test_batches_equal_single_requests_with_plugins(plugin: str) -> None:
    eval_set = few_scenes()
    assert run_eval_set(demo_model(), eval_set, [PluginSettings(plugin)]) == one_by_one(eval_set, plugin)


def test_images_are_shared_only_for_causal_models_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    eval_set, used = few_scenes(), []
    for way in (generation._SharedPictures, generation._WholePrompts):
        monkeypatch.setattr(way, "__call__", lambda self, batch, way=way: used.append(way) or [(r, "") for r in batch])
    run_eval_set(demo_model(), eval_set)
    assert set(used) == {generation._SharedPictures}
    used.clear()
    run_eval_set(demo_model(), eval_set, [PluginSettings("scr")])
    monkeypatch.setattr(demo_model().model.config, "model_type", "paligemma")
    run_eval_set(demo_model(), eval_set)
    assert set(used) == {generation._WholePrompts}


def test_every_batch_draws_new_uniform_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def note_seed(loaded: Any, prompts: Any, plugins: Any, **settings: Any) -> list[Answer]:
        seeds.append(plugins[0].seed)
        return [Answer("", 0, 0.0)] * len(prompts)

    monkeypatch.setattr(generation, "respond_batch", note_seed)
    run_eval_set(demo_model(), few_scenes(), [PluginSettings("scr", {"selection": "uniform", "seed": 5})])
    assert seeds == list(range(5, 5 + len(seeds)))
    assert len(seeds) > 1
