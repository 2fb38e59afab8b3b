"""Test KVSmooth against its formulas, token by token over the whole text, without a cache."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.errors import UsageError
from qkedit.plugins.contrast.settings import VCD
from qkedit.plugins.smoothed.plugin import KVSmooth
from qkedit.plugins.transformers.modules import vlm_modules
from tests.plugins.closeness import assert_equals_formulas
from tests.plugins.greedy import STEPS, generated, one_image_each
from tests.plugins.tiny_requests import distinct, model, request, two_prompts
from tests.plugins.whole_text import whole_text
from tests.plugins.written_out_attention import attention_by

FAMILIES = distinct("qwen2-vl", "qwen2.5-vl", "llava", "llava-next", "internvl", "gemma3", "mistral3", "idefics3")
WINDOW = 3
PLUGIN = KVSmooth(strength=0.5, spread=0.4, window=WINDOW, layers="1-3")


def smoothed_attention(family: str, prompt: int) -> AbstractContextManager[None]:
    """Compute attention in which every token after the prompt has a smoothed key and value for later tokens."""

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        shares = (query @ key.transpose(-1, -2) * scale + mask).softmax(dim=-1)
        output = shares @ value
        if layer not in (1, 2, 3):
            return output
        key, value, entropies = key.clone(), value.clone(), []
        for row in range(prompt, query.shape[2]):
            own = query[0, :, row, None] @ key[0].transpose(-1, -2) * scale + mask[0, :, row, None]
            shares = own.softmax(dim=-1)
            output[0, :, row] = (shares @ value[0])[:, 0]
            of_heads = shares[:, 0].mean(dim=0).tolist()
            entropies.append(-sum(share * math.log(share) for share in of_heads if share > 0))
            recent = entropies[-WINDOW:]
            rank = (sum(other < recent[-1] for other in recent) + 0.5) / len(recent)
            strength = min(max(rank, 0.5 - 0.4), 0.5 + 0.4)
            for states in (key, value):
                states[0, :, row] = (1 - strength) * states[0, :, row] + strength * states[0, :, row - 1]
        return output

    return attention_by(family, attention)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_the_formulas(family: str) -> None:
    prompts, vlm = two_prompts(family), model(family)
    together = request(family, prompts).inputs
    plain, own = generated(family, together)
    with qkedit.attach(vlm, PLUGIN) as attached:
        answers, logits = generated(family, together)
    report = attached.report()[0].plugins["kvsmooth"]
    assert (report.layers, report.tokens) == ((1, 2, 3), STEPS - 1)
    assert 0.1 <= report.mean_strength <= 0.9
    for row, prompt in enumerate(prompts):
        alone, answer = request(family, [prompt]).inputs, []
        with smoothed_attention(family, alone["input_ids"].shape[1]):
            for step in range(STEPS):
                expected = whole_text(vlm, alone, answer).logits[0, -1]
                assert_equals_formulas(logits[step][row], expected)
                answer.append(int(expected.argmax()))
        assert answers[row].tolist() == answer
        # The first token follows from the prompt, and the second one reads its own key before smoothing.
        assert torch.equal(logits[0][row], own[0][row])
        assert (logits[2][row] - own[2][row]).abs().max() > 1e-4
    assert torch.equal(generated(family, together)[0], plain)


@pytest.mark.parametrize("family", ["qwen2-vl", "gemma3"])
def test_a_strength_of_zero_changes_no_bit(family: str) -> None:
    given = request(family, two_prompts(family)).inputs
    answers, logits = generated(family, given)
    with qkedit.attach(model(family), KVSmooth(strength=0, spread=0)):
        same, same_logits = generated(family, given)
    assert torch.equal(same, answers)
    assert all(torch.equal(one, other) for one, other in zip(logits, same_logits, strict=True))


def test_streams_and_text_requests_between_work() -> None:
    """Qwen stores the position offset of an image on a module; a stream receives the tokens of the answer."""
    given = request("qwen2-vl", one_image_each("qwen2-vl")[:1]).inputs
    text = {"input_ids": torch.tensor([[1, 50, 51, 52]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    streamed: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            streamed.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    with qkedit.attach(model("qwen2-vl"), PLUGIN) as attached:
        first, _ = generated("qwen2-vl", given)
        generated("qwen2-vl", text)
        again, _ = generated("qwen2-vl", given, streamer=Streamer())
    assert torch.equal(first, again)
    assert streamed == [*given["input_ids"][0].tolist(), *again[0].tolist()]
    assert [report.plugins["kvsmooth"].tokens for report in attached.report()] == [STEPS - 1] * 3


def test_random_numbers_of_sampling_are_unchanged_and_all_answers_are_smoothed() -> None:
    given = request("llava", two_prompts("llava")).inputs
    model("llava")

    def sampled(*plugins: Any) -> Tensor:
        torch.manual_seed(1)
        sampling = {"do_sample": True, "top_k": 0, "num_return_sequences": 2}
        if not plugins:
            return generated("llava", given, **sampling)[0]
        with qkedit.attach(model("llava"), *plugins):
            return generated("llava", given, **sampling)[0]

    own, after = sampled(), torch.rand(1)
    assert torch.equal(sampled(KVSmooth(strength=0, spread=0)), own)
    assert torch.equal(torch.rand(1), after)
    assert sampled(PLUGIN).shape == own.shape


def test_with_a_contrast_only_the_answer_is_smoothed() -> None:
    """A contrast with a negligible weight keeps KVSmooth's effect, although its branch is not smoothed."""
    given = request("llava", one_image_each("llava")).inputs
    with qkedit.attach(model("llava"), PLUGIN):
        alone, logits = generated("llava", given)
    with qkedit.attach(model("llava"), PLUGIN, VCD(alpha=1e-12, beta=0)) as attached:
        together, other = generated("llava", given)
    assert torch.equal(alone, together)
    torch.testing.assert_close(logits[-1], other[-1], atol=1e-6, rtol=0)
    assert set(attached.report()[0].plugins) == {"kvsmooth", "vcd"}


def test_default_layers_follow_the_depth_and_beams_are_refused() -> None:
    assert KVSmooth().bind(vlm_modules(model("llava"))).layers == (0, 1, 2, 3)
    given = request("llava", one_image_each("llava")[:1]).inputs
    with qkedit.attach(model("llava"), KVSmooth()), pytest.raises(UsageError, match="kvsmooth cannot act: beam"):
        generated("llava", given, num_beams=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"strength": 1.5}, "kvsmooth strength"),
        ({"spread": math.nan}, "kvsmooth spread"),
        ({"window": 0}, "kvsmooth window"),
        ({"layers": "x"}, "kvsmooth layers"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        KVSmooth(**settings)
