"""Test batches against single requests, with and without plug-ins, and shared prefills against separate ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from qkedit import DSCR, SCR
from qkedit.laboratory.answering import generation, whole_prompts
from qkedit.laboratory.answering import shared_pictures as shared_pictures_module
from qkedit.laboratory.answering.batches import Request
from qkedit.laboratory.answering.generation import EvalSetAnswers, run_eval_set
from qkedit.laboratory.answering.shared_pictures import SharedPictures
from qkedit.laboratory.answering.whole_prompts import WholePrompts
from qkedit.laboratory.eval_set import EvalSet
from qkedit.laboratory.worker import one_thread
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import respond
from tests.laboratory.small_eval_sets import demo_model, few_scenes

# Answers, including long ones, are compared up to their end or this number of tokens.
TOKENS = {"CAPTION_TOKENS": 12, "ANSWER_TOKENS": 3}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, tokens in TOKENS.items():
        monkeypatch.setattr(generation, name, tokens)
    monkeypatch.setattr(whole_prompts, "PROMPTS_AT_ONCE", 7)  # the last batch is smaller
    monkeypatch.setattr(shared_pictures_module, "SCENES_AT_ONCE", 2)
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


@pytest.mark.parametrize("share_pictures", [True, False])
@pytest.mark.parametrize("plugin", ["scr", "dscr"])
def test_batches_equal_single_requests_with_plugins(plugin: str, share_pictures: bool) -> None:
    eval_set = few_scenes()
    found = run_eval_set(demo_model(), eval_set, [PluginSettings(plugin)], share_pictures=share_pictures)
    assert found == one_by_one(eval_set, plugin)


@pytest.mark.parametrize(
    ("settings", "questions"),
    [
        (PluginSettings("dscr"), slice(None)),
        (PluginSettings("dscr", {"refine": "both", "space": "pre-rotation"}), slice(None)),
        # With one picture and one question, both ways draw the same sources.
        (PluginSettings("scr", {"selection": "uniform", "seed": 5}), slice(7, 8)),
    ],
)
def test_a_shared_picture_has_the_effect_of_a_plugin_on_whole_prompts(
    settings: PluginSettings, questions: slice
) -> None:
    """Texts can be equal by chance, so compare the logits of the first token of each answer."""
    shared, whole = (first_logits(way, [settings], questions) for way in (SharedPictures, WholePrompts))
    assert shared.keys() == whole.keys()
    assert all((shared[asked] - whole[asked]).abs().max() < 1e-4 for asked in whole)
    plain = first_logits(WholePrompts, [], questions)
    assert all((plain[asked] - whole[asked]).abs().max() > 1e-3 for asked in whole)


def first_logits(
    kind: type[SharedPictures | WholePrompts], plugins: list[PluginSettings], questions: slice
) -> dict[Request, torch.Tensor]:
    """Return the logits of the first token of the answers to some of the questions."""
    eval_set, model = few_scenes(), demo_model().model
    usual, logits = model.generate, []

    def generate(*args: Any, **given: Any) -> Any:
        output = usual(*args, **given, output_logits=True, return_dict_in_generate=True)
        logits.extend(output.logits[0])
        return output.sequences

    way = kind(demo_model(), eval_set, tuple(plugins))
    answered: list[Request] = []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(model, "generate", generate)
        for batch in way.batches([Request(scene, prompt, 1) for scene, prompt in eval_set.asked[questions]]):
            answered += [request for request, _ in way(batch)]
    return dict(zip(answered, logits, strict=True))


def test_pictures_are_shared_only_for_causal_models_and_plugins_that_need_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eval_set, used = few_scenes(), []
    for way in (SharedPictures, WholePrompts):
        monkeypatch.setattr(way, "__call__", lambda self, batch, way=way: used.append(way) or [(r, "") for r in batch])

    def ways_of(*plugins: PluginSettings) -> set[type]:
        used.clear()
        run_eval_set(demo_model(), eval_set, plugins)
        return set(used)

    uniform, dscr = PluginSettings("scr", {"selection": "uniform"}), PluginSettings("dscr")
    assert ways_of() == ways_of(uniform) == ways_of(dscr) == {SharedPictures}
    at_image = PluginSettings("dscr", {"when": "image"})
    for plugins in ([PluginSettings("scr")], [at_image], [uniform, dscr], [PluginSettings("vcd")]):
        assert ways_of(*plugins) == {WholePrompts}
    monkeypatch.setattr(demo_model().model.config, "model_type", "paligemma")
    assert ways_of() == {WholePrompts}


@pytest.mark.parametrize("share_pictures", [True, False])
def test_every_batch_draws_new_uniform_sources(monkeypatch: pytest.MonkeyPatch, share_pictures: bool) -> None:
    seeds = []
    module = shared_pictures_module if share_pictures else whole_prompts
    usual = module.plugins_for

    def note_seed(*args: Any) -> list[Any]:
        plugins = usual(*args)
        seeds.append(plugins[0].seed)
        return plugins

    monkeypatch.setattr(module, "plugins_for", note_seed)
    plugins = [PluginSettings("scr", {"selection": "uniform", "seed": 5})]
    run_eval_set(demo_model(), few_scenes(), plugins, share_pictures=share_pictures)
    assert seeds == list(range(5, 5 + len(seeds)))
    assert len(seeds) > 1
