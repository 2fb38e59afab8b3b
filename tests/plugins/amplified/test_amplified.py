"""Test PAI's attention and MiddleLayer against attention with explicit matrices over the whole text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import SCR
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.amplified.plugin import MiddleLayer, PAIAttention
from qkedit.plugins.transformers.modules import vlm_modules
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import IMAGE, distinct, model, request
from tests.plugins.whole_text import whole_text
from tests.plugins.written_out_attention import changed_scores

FAMILIES = distinct("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3", "mistral3", "idefics3")
METHODS = {
    "pai-attention": PAIAttention(alpha=0.7, layers="1-3"),
    "middle-layer": MiddleLayer(alpha=0.9, layers="1-3"),
}


def full_layers(family: str) -> list[int]:
    kinds = getattr(model(family).get_decoder().config, "layer_types", None) or ["full_attention"] * 4
    return [layer for layer in (1, 2, 3) if kinds[layer] == "full_attention"]


def raised_scores(family: str, ids: list[int], plugin: Any) -> AbstractContextManager[None]:
    """Raise scores in the rows from the last one of the prompt."""
    columns, layers = [column for column, token in enumerate(ids) if token == IMAGE], full_layers(family)

    def raise_them(layer: int, scores: Tensor) -> None:
        for row in range(len(ids) - 1, scores.shape[-2] if layer in layers else 0):
            for column in columns:
                size = scores[0, :, row, column].abs()
                mean = sum(size.tolist()) / len(size)
                scores[0, :, row, column] += plugin.alpha * (mean if plugin.name == "middle-layer" else size)

    return changed_scores(family, raise_them)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_raised_scores(family: str, method: str) -> None:
    prompts, vlm, plugin = one_image_each(family), model(family), METHODS[method]
    together = request(family, prompts).inputs
    plain, own = generated(family, together)
    with qkedit.attach(vlm, plugin) as attached:
        answers, logits = generated(family, together)
    report = attached.report()[0].plugins[method]
    assert list(report.layers) == full_layers(family)
    for row, prompt in enumerate(prompts):
        alone, answer = request(family, [prompt]).inputs, []
        with raised_scores(family, alone["input_ids"][0].tolist(), plugin):
            for step in range(STEPS):
                expected = whole_text(vlm, alone, answer).logits[0, -1]
                assert_equals_formulas(logits[step][row], expected)
                answer.append(int(expected.argmax()))
        assert answers[row].tolist() == answer
        assert (logits[0][row] - own[0][row]).abs().max() > 1e-4
    assert torch.equal(generated(family, together)[0], plain)


def test_scr_and_questions_without_images_work_with_raised_scores() -> None:
    """SCR records the raised attention; a request without images equals the plain model."""
    given = request("llava", one_image_each("llava")).inputs
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain, _ = generated("llava", text)
    scr = SCR(layers="0-2", diagnosis="1,3", sources=5, factor=1.3)
    with qkedit.attach(model("llava"), scr, PAIAttention()) as attached:
        generated("llava", given)
        assert torch.equal(generated("llava", text)[0], plain)
    first, second = attached.report()
    assert set(first.plugins) == {"scr", "pai-attention"}
    assert second.plugins["pai-attention"].warnings == ("there is no image, so nothing is raised",)


def test_beams_raise_the_scores_of_their_own_image() -> None:
    """The beams of a padded batch equal those of single prompts, whose image is at another position."""
    prompts = one_image_each("llava")
    with qkedit.attach(model("llava"), METHODS["pai-attention"]):
        together, _ = generated("llava", request("llava", prompts).inputs, num_beams=3)
        for row, prompt in enumerate(prompts):
            alone, _ = generated("llava", request("llava", [prompt]).inputs, num_beams=3)
            assert torch.equal(together[row], alone[0])


def test_default_layers_are_chosen_and_capped_scores_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = vlm_modules(model("llava"))
    assert PAIAttention().bind(modules).layers == (2, 3)
    assert MiddleLayer().bind(modules).layers == (1, 2)
    monkeypatch.setattr(modules.text_config, "attn_logit_softcapping", 50.0, raising=False)
    with pytest.raises(UnsupportedForm, match="capped"):
        PAIAttention().bind(modules)


@pytest.mark.parametrize("make", [lambda: PAIAttention(alpha=-1), lambda: MiddleLayer(layers="x")])
def test_invalid_settings_are_refused(make: Any) -> None:
    with pytest.raises(UsageError, match=r"pai-attention alpha|middle-layer layers"):
        make()
