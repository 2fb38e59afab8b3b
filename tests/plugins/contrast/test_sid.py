"""Test SID against its formulas over the whole text, with a mask for every row and without a cache."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import SCR
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.contrast.settings import SID
from qkedit.plugins.vaf.plugin import VAF
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import IMAGE, model, request, two_prompts
from tests.plugins.whole_text import whole_text
from tests.plugins.written_out_attention import attention_by

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3", "idefics3")


def selected(family: str, ids: list[int], keep: float, start: int = 2) -> AbstractContextManager[None]:
    """Compute attention in which each row, from the prompt's last one, selects columns for layers from `start` on."""
    image = [column for column, token in enumerate(ids) if token == IMAGE]
    count = max(1, round(keep * len(image))) if keep < 1 else int(keep)
    hidden: dict[int, list[int]] = {}

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        scores = query @ key.transpose(-1, -2) * scale + mask
        rows = scores.shape[2]
        themselves = scores.diagonal(dim1=-2, dim2=-1).clone()
        if layer >= start:
            scores[0, :, : len(ids), hidden[len(ids) - 1]] = -torch.inf
            for row in range(len(ids), rows):
                scores[0, :, row, hidden[row]] = -torch.inf
        scores.diagonal(dim1=-2, dim2=-1).copy_(themselves)
        shares = scores.softmax(dim=-1)
        for row in range(len(ids) - 1, rows if layer == start - 1 else 0):
            seen = [sum(of_heads) / len(of_heads) for of_heads in shares[0, :, row, image].T.tolist()]
            least = sorted(range(len(image)), key=lambda place: (seen[place], place))[:count]
            hidden[row] = [column for place, column in enumerate(image) if place not in least]
        return shares @ value

    return attention_by(family, attention)


def contrasted(family: str, inputs: Any, plugin: SID) -> tuple[list[int], list[Tensor]]:
    answer: list[int] = []
    every: list[Tensor] = []
    for _ in range(STEPS):
        logits = []
        for context in (nullcontext(), selected(family, inputs["input_ids"][0].tolist(), plugin.keep, plugin.start)):
            with context:
                logits.append(whole_text(model(family), inputs, answer).logits[0, -1])
        own, other = logits
        edited = (1 + plugin.alpha) * own - plugin.alpha * other
        edited[own < own.max() + math.log(plugin.beta)] = -torch.inf
        every.append(edited)
        answer.append(int(edited.argmax()))
    return answer, every


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("family", "plugin"),
    [(family, SID(alpha=0.8, keep=5)) for family in FAMILIES] + [("llava", SID(alpha=0.5, keep=0.25, start=1))],
)
def test_a_padded_batch_equals_the_formulas(family: str, plugin: SID) -> None:
    # Images of LLaVA-NeXT are long, so its second prompt has one image, like the first.
    prompts = one_image_each(family) if family == "llava-next" else two_prompts(family)
    with qkedit.attach(model(family), plugin) as attached:
        answers, logits = generated(family, request(family, prompts).inputs)
    (report,) = attached.report()
    assert report.plugins["sid"].steps == STEPS
    assert report.warnings == ()
    for row, prompt in enumerate(prompts):
        answer, expected = contrasted(family, request(family, [prompt]).inputs, plugin)
        for step in range(STEPS):
            finite = expected[step].isfinite()
            assert torch.equal(logits[step][row].isfinite(), finite)
            assert_equals_formulas(logits[step][row][finite], expected[step][finite])
        assert answers[row].tolist() == answer


def test_a_weight_of_zero_keeps_greedy_answers() -> None:
    given = request("qwen2-vl", two_prompts("qwen2-vl")).inputs
    own, _ = generated("qwen2-vl", given)
    with qkedit.attach(model("qwen2-vl"), SID(alpha=0)):
        assert torch.equal(generated("qwen2-vl", given)[0], own)


def test_keeping_all_image_tokens_has_no_effect_and_warns() -> None:
    given = request("llava", one_image_each("llava")).inputs
    _, own = generated("llava", given)
    with qkedit.attach(model("llava"), SID(beta=0)) as attached:
        _, logits = generated("llava", given)
    for step in range(STEPS):
        torch.testing.assert_close(logits[step], own[step], atol=1e-5, rtol=0)
    assert attached.report()[0].warnings == (
        "the 36 image tokens are all kept, so the branch is the model itself; lower keep",
    )


def test_random_numbers_of_sampling_are_unchanged() -> None:
    given = request("qwen2.5-vl", two_prompts("qwen2.5-vl")).inputs
    model("qwen2.5-vl")  # made before the seed, since building it draws numbers too
    torch.manual_seed(1)
    own, _ = generated("qwen2.5-vl", given, do_sample=True, top_k=0)
    after = torch.rand(1)
    torch.manual_seed(1)
    with qkedit.attach(model("qwen2.5-vl"), SID(alpha=1e-12, beta=0, keep=3)):
        answers, _ = generated("qwen2.5-vl", given, do_sample=True, top_k=0)
    assert torch.equal(answers, own)
    assert torch.equal(torch.rand(1), after)


def test_sid_works_with_scr_and_questions_without_images() -> None:
    """SCR also has a preview in the branch; the run of the answer is not masked; eager attention gives the same."""
    given = request("qwen2-vl", one_image_each("qwen2-vl")).inputs
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    plain, _ = generated("qwen2-vl", text)
    scr = SCR(layers="0-2", diagnosis="1,3", sources=5, factor=1.3)
    with qkedit.attach(model("qwen2-vl"), scr, SID(keep=5)) as attached:
        first, logits = generated("qwen2-vl", given)
        assert torch.equal(generated("qwen2-vl", text)[0], plain)
        assert torch.equal(generated("qwen2-vl", given)[0], first)
        model("qwen2-vl").set_attn_implementation("eager")
        try:
            _, eager = generated("qwen2-vl", given)
        finally:
            model("qwen2-vl").set_attn_implementation("sdpa")
    assert [len(report.warnings) for report in attached.report()] == [0, 1, 0, 0]
    assert set(attached.report()[0].plugins) == {"scr", "sid"}
    finite = logits[-1].isfinite()
    torch.testing.assert_close(eager[-1][finite], logits[-1][finite], atol=1e-5, rtol=1e-5)


def test_sid_works_with_a_prompt_in_parts() -> None:
    given = request("llava", one_image_each("llava")[:1]).inputs
    with (
        qkedit.attach(model("llava"), VAF(), SID(keep=5)),
        pytest.raises(UsageError, match="sid cannot act: another plug-in runs the prompt in parts"),
    ):
        generated("llava", given)


def test_unsupported_models_and_settings_are_refused() -> None:
    with pytest.raises(UnsupportedForm, match="not attention"):
        qkedit.attach(model("qwen3.5"), SID())
    with pytest.raises(UsageError, match="4 layers"):
        qkedit.attach(model("llava"), SID(start=4))
    given = request("llava", one_image_each("llava")[:1]).inputs
    with qkedit.attach(model("llava"), SID()), pytest.raises(UsageError, match="sid cannot act: beam search"):
        generated("llava", given, num_beams=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"alpha": -1.0}, "sid alpha"),
        ({"keep": 2.5}, "sid keep"),
        ({"keep": 0}, "sid keep"),
        ({"keep": math.nan}, "sid keep"),
        ({"start": 0}, "sid start"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SID(**settings)
