"""Test CRoPS against its formulas over the whole text, with masks for every row and without a cache."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.contrast.crops import CRoPS
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import IMAGE, model, request
from tests.plugins.whole_text import whole_text
from tests.plugins.written_out_attention import attention_by

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3")
# With these values the selection grows within a few tokens, and some distributions exceed the limit.
# The weights of the three distributions add up to 4.6 at the fifth token: they multiply the rounding of each.
PLUGIN = CRoPS(decay=0.1, alpha=0.7, beta=0.2, limit=0.2, keep=5, keep_text=3, more_text=700)


def hiding(family: str, ids: list[int], plugin: CRoPS, *, of_image: bool) -> AbstractContextManager[None]:
    """Compute attention in which each row, from the prompt's last one, selects columns for the layers from 2 on."""
    hidden: dict[int, list[int]] = {}

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        scores = query @ key.transpose(-1, -2) * scale + mask
        rows = scores.shape[2]
        if layer >= 2:
            for row in range(rows):
                blocked = [column for column in hidden[max(row, len(ids) - 1)] if column != row]
                scores[0, :, row, blocked] = -torch.inf
        shares = scores.softmax(dim=-1)
        for row in range(len(ids) - 1, rows if layer == 1 else 0):
            columns = [n for n, token in enumerate(ids) if token == IMAGE] if of_image else list(range(row + 1))
            token = row - len(ids) + 2
            count = plugin.keep if of_image else math.floor(3 + 700 * (1 - math.exp(-0.001 * token)))
            seen = dict(zip(columns, shares[0, :, row, columns].mean(dim=0).tolist(), strict=True))
            hidden[row] = sorted(columns, key=lambda column: (seen[column], column))[count:]
        return shares @ value

    return attention_by(family, attention)


def without_image(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the text of the prompt; in these families every image is one sequence of tokens, with its newlines."""
    ids = inputs["input_ids"][0].tolist()
    first, last = ids.index(IMAGE), len(ids) - 1 - ids[::-1].index(IMAGE)
    per_token = {
        name: inputs[name]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        if name in inputs
    }
    return {name: torch.cat([values[:, :first], values[:, last + 1 :]], dim=1) for name, values in per_token.items()}


def contrasted(family: str, inputs: dict[str, Any], plugin: CRoPS) -> tuple[list[int], list[Tensor], int]:
    vlm, text = model(family), without_image(inputs)
    answer: list[int] = []
    every: list[Tensor] = []
    sure = 0
    for step in range(STEPS):
        own = whole_text(vlm, inputs, answer).logits[0, -1].double()
        with hiding(family, text["input_ids"][0].tolist(), plugin, of_image=False):
            p0 = whole_text(vlm, text, answer).logits[0, -1].double().softmax(dim=-1)
        with hiding(family, inputs["input_ids"][0].tolist(), plugin, of_image=True):
            p1 = whole_text(vlm, inputs, answer).logits[0, -1].double().softmax(dim=-1)
        p = own.softmax(dim=-1)
        p = torch.where(p >= plugin.beta * p.max(), p, 0.0)
        p /= p.sum()
        gamma = math.exp(-plugin.decay * (step + 1))
        edited = p.log() + (1 - gamma) / gamma * (p.log() - p0.log())
        edited = (1 + plugin.alpha) * edited - plugin.alpha * p1.log()
        if p.max() > plugin.limit:
            edited, sure = p.log(), sure + 1
        every.append(edited)
        answer.append(int(edited.argmax()))
    return answer, every, sure


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str) -> None:
    prompts = one_image_each(family)
    # The other tiny models are certain of most tokens.
    plugin = PLUGIN if family == "llava" else replace(PLUGIN, beta=1e-4, limit=1.0)
    with qkedit.attach(model(family), plugin) as attached:
        answers, logits = generated(family, request(family, prompts).inputs)
    report = attached.report()[0]
    sure = 0
    assert report.plugins["crops"].steps == STEPS
    assert report.warnings == ()
    for row, prompt in enumerate(prompts):
        answer, expected, of_prompt = contrasted(family, request(family, [prompt]).inputs, plugin)
        assert of_prompt < STEPS
        assert max(int(edited.isfinite().sum()) for edited in expected) > 1
        sure += of_prompt
        for step in range(STEPS):
            finite = expected[step].isfinite()
            assert torch.equal(logits[step][row].isfinite(), finite)
            assert_equals_formulas(logits[step][row][finite], expected[step][finite])
        assert answers[row].tolist() == answer
    if family == "llava":
        assert 0 < sure < STEPS * len(prompts)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_tokens_above_the_limit_of_certainty_are_not_contrasted(limit: float) -> None:
    given = request("llava", one_image_each("llava")).inputs
    own = generated("llava", given)[1][0].log_softmax(dim=-1)
    with qkedit.attach(model("llava"), CRoPS(limit=limit, beta=0, keep=5, keep_text=3)):
        logits = generated("llava", given)[1][0]
    assert torch.allclose(logits, own, atol=1e-5) == (limit == 0.0)


def test_a_question_without_images_is_not_contrasted() -> None:
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain, _ = generated("qwen2-vl", text)
    with qkedit.attach(model("qwen2-vl"), CRoPS()) as attached:
        assert torch.equal(generated("qwen2-vl", text)[0], plain)
    assert "nothing is contrasted" in attached.report()[0].warnings[0]


def test_unsupported_models_and_beams_are_refused() -> None:
    with pytest.raises(UnsupportedForm, match="not attention"):
        qkedit.attach(model("qwen3.5"), CRoPS())
    given = request("llava", one_image_each("llava")[:1]).inputs
    with qkedit.attach(model("llava"), CRoPS()), pytest.raises(UsageError, match="crops cannot act: beam search"):
        generated("llava", given, num_beams=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"decay": -1.0}, "crops decay"),
        ({"keep": 2.5}, "crops keep"),
        ({"keep_text": 0}, "crops keep_text"),
        ({"more_text": -1}, "crops more_text"),
        ({"start": 0}, "crops start"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        CRoPS(**settings)
