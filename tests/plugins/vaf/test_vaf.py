"""Test VAF against attention with scaled scores, with explicit matrices over the whole text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.transformers.modules import vlm_modules
from qkedit.plugins.vaf.plugin import VAF
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import IMAGE, distinct, model, request
from tests.plugins.whole_text import whole_text
from tests.plugins.written_out_attention import changed_scores

FAMILIES = distinct(
    "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava", "llava-next", "internvl", "gemma3", "mistral3", "idefics3"
)
LAYERS, IMAGE_FACTOR, BEFORE_FACTOR = (1, 2), 1.4, 0.7


def scaled_scores(family: str, ids: list[int]) -> AbstractContextManager[None]:
    """Scale scores in the rows after the image."""
    columns = [column for column, token in enumerate(ids) if token == IMAGE]

    def scale(layer: int, scores: Tensor) -> None:
        if layer in LAYERS:
            for row in range(columns[-1] + 1, scores.shape[-2]):
                scores[..., row, : columns[0]] *= BEFORE_FACTOR
                scores[..., row, columns] *= IMAGE_FACTOR

    return changed_scores(family, scale)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_scaled_scores(family: str) -> None:
    prompts, vlm = one_image_each(family), model(family)
    if family == "gemma3":  # an image with bidirectional attention cannot be split at the end of another one
        with qkedit.attach(vlm, VAF()), pytest.raises(UsageError, match="one by one"):
            generated(family, request(family, prompts).inputs)
        prompts = prompts[:1]
    vaf = VAF(layers="1-2", image=IMAGE_FACTOR, before=BEFORE_FACTOR)
    together = request(family, prompts).inputs
    plain, _ = generated(family, together)
    with qkedit.attach(vlm, vaf) as attached:
        answers, logits = generated(family, together)
    report = attached.report()[0].plugins["vaf"]
    assert report.layers == LAYERS
    assert report.image_tokens == int((together["input_ids"] == IMAGE).sum())
    for row, prompt in enumerate(prompts):
        alone, answer = request(family, [prompt]).inputs, []
        with scaled_scores(family, alone["input_ids"][0].tolist()):
            for step in range(STEPS):
                expected = whole_text(vlm, alone, answer).logits[0, -1]
                assert_equals_formulas(logits[step][row], expected)
                answer.append(int(expected.argmax()))
        assert answers[row].tolist() == answer
        assert (logits[0][row] - whole_text(vlm, alone, []).logits[0, -1]).abs().max() > 1e-3
    assert torch.equal(generated(family, together)[0], plain)


def test_beams_equal_those_of_scaled_scores() -> None:
    """The reference computes each beam from the whole text by explicit attention."""
    given = request("llava", one_image_each("llava")[:1]).inputs
    with scaled_scores("llava", given["input_ids"][0].tolist()):
        expected, _ = generated("llava", given, num_beams=3, use_cache=False)
    with qkedit.attach(model("llava"), VAF(layers="1-2", image=IMAGE_FACTOR, before=BEFORE_FACTOR)):
        answers, _ = generated("llava", given, num_beams=3)
    assert torch.equal(answers, expected)
    assert not torch.equal(answers, generated("llava", given, num_beams=3)[0])


def test_factors_of_one_change_nothing() -> None:
    given = request("llava", one_image_each("llava")).inputs
    _, own = generated("llava", given)
    with qkedit.attach(model("llava"), VAF(image=1.0, before=1.0)):
        _, logits = generated("llava", given)
    # The prompt runs in two parts, so rounding differs.
    for one, other in zip(own, logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_default_layers_are_chosen_and_capped_scores_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = vlm_modules(model("llava"))
    assert VAF().bind(modules).layers == (1, 2)
    monkeypatch.setattr(modules.text_config, "attn_logit_softcapping", 50.0, raising=False)
    with pytest.raises(UnsupportedForm, match="capped"):
        VAF().bind(modules)


@pytest.mark.parametrize("settings", [{"image": 0.0}, {"before": float("nan")}, {"layers": "x"}])
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="vaf"):
        VAF(**settings)
