"""Test the shares against the eager attention that transformers returns, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit import DSCR, SCR
from qkedit.errors import UsageError
from qkedit.plugins.amplified.plugin import PAIAttention
from qkedit.plugins.contrast.settings import VCD
from qkedit.plugins.measures.attention_shares import AttentionShares, SharesReport
from tests.plugins.dscr.dscr_requests import UNCROPPED, depth_maps, images_in
from tests.plugins.greedy import STEPS, generated
from tests.plugins.tiny_requests import IMAGE, Prompt, model, request, two_prompts
from tests.plugins.written_out_attention import changed_scores

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3.5", "llava", "llava-next", "internvl", "gemma3", "paligemma", "idefics3")


def measured(family: str, inputs: Any, *plugins: Any, **settings: Any) -> tuple[Tensor, SharesReport]:
    with qkedit.attach(model(family), *plugins, AttentionShares()) as attached:
        answers, _ = generated(family, inputs, **settings)
    report = attached.report()[-1].plugins["attention"]
    assert isinstance(report, SharesReport)
    return answers, report


def slow_shares(row: Tensor, ids: list[int], real: list[int], skipped: int) -> list[float]:
    """Add up one row of attention, `[columns]`, column by column.

    Args:
        row: mean attention over heads.
        ids: the token ids of the prompt with padding.
        real: 0 for padding.
        skipped: the number of columns before the first one in the layer's window.
    """
    sums = dict.fromkeys(("first", "before", "image", "behind", "generated"), 0.0)
    images = [column for column, token in enumerate(ids) if token == IMAGE]
    for place, share in enumerate(row.tolist()):
        column = place + skipped
        if column >= len(ids):
            group = "generated"
        elif column == real.index(1):
            group = "first"
        elif ids[column] == IMAGE:
            group = "image"
        else:
            group = "before" if column < images[0] else "behind"
        sums[group] += share
    return list(sums.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_equal_those_of_eager_attention(family: str) -> None:
    """Cover a padded batch whose second prompt has two images, and sliding windows that have lost the image."""
    inputs, vlm = request(family, two_prompts(family)).inputs, model(family)
    answers, report = measured(family, inputs)
    vlm.set_attn_implementation("eager")
    try:
        eager = vlm.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    finally:
        vlm.set_attn_implementation("sdpa")
    assert torch.equal(eager.sequences[:, inputs["input_ids"].shape[1] :], answers)
    assert report.shares.shape == (2, STEPS, len(report.layers), 5)
    length = inputs["input_ids"].shape[1]
    for step, of_layers in enumerate(eager.attentions):
        rows = [layer for layer in of_layers if layer is not None]
        assert len(rows) == len(report.layers)
        for place, weights in enumerate(rows):
            for prompt in range(2):
                expected = slow_shares(
                    weights[prompt, :, -1].float().mean(dim=0),
                    inputs["input_ids"][prompt].tolist(),
                    inputs["attention_mask"][prompt].tolist(),
                    length + step - weights.shape[-1],
                )
                found = report.shares[prompt, step, place]
                torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(report.shares.sum(dim=-1), torch.ones(report.shares.shape[:-1]), atol=1e-5, rtol=0)
    assert report.image_first == (False, False)
    if family == "gemma3":  # the image is outside a window of eight columns, but not outside the global layer
        assert report.shares[0, -1, 0, 2] == 0 < report.shares[0, -1, 1, 2]


def test_an_image_may_begin_in_the_first_column() -> None:
    inputs = request("llava", two_prompts("llava")[:1]).inputs
    start = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    cut = {name: inputs[name][:, start:] for name in ("input_ids", "attention_mask")}
    _, report = measured("llava", {**inputs, **cut})
    assert report.image_first == (True,)
    assert (report.shares[..., 0] > 0).all()
    assert (report.shares[..., 1] == 0).all()


def test_measuring_keeps_answers_and_a_batch_equals_single_prompts() -> None:
    prompts = two_prompts("llava")
    inputs = request("llava", prompts).inputs
    plain, _ = generated("llava", inputs)
    answers, together = measured("llava", inputs)
    assert torch.equal(plain, answers)
    for row, prompt in enumerate(prompts):
        _, alone = measured("llava", request("llava", [prompt]).inputs)
        torch.testing.assert_close(together.shares[row], alone.shares[0], atol=1e-5, rtol=0)


def test_shares_include_raised_scores() -> None:
    """Compare PAI's plug-in on all layers with explicit attention over the whole text."""
    prompt = [Prompt((2, (0, 0), 4), seed=3)]
    inputs = request("llava", prompt).inputs
    answers, report = measured("llava", inputs, PAIAttention(alpha=2.0, layers="0-3"))
    _, plain = measured("llava", inputs)
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    seen: dict[int, Tensor] = {}

    def raise_last(layer: int, scores: Tensor) -> None:
        first = inputs["input_ids"].shape[1] - 1
        scores[0, :, first:, image] += 2.0 * scores[0, :, first:, image].abs()
        seen[layer] = scores[0, :, -1].softmax(dim=-1)[:, image].sum(dim=-1).mean()

    text = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answers[:, :-1]], dim=1)}
    text["attention_mask"] = torch.ones_like(text["input_ids"])
    with torch.no_grad(), changed_scores("llava", raise_last):
        model("llava")(**text)
    for layer in range(4):
        torch.testing.assert_close(report.shares[0, -1, layer, 2], seen[layer], atol=1e-5, rtol=0)
    assert (report.shares[0, :, 0, 2] > plain.shares[0, :, 0, 2]).all()


def test_only_attention_of_the_answer_is_measured() -> None:
    """DSCR runs the last token of the prompt again, and VCD runs another prompt."""
    given = request("llava", two_prompts("llava"))
    depth = DSCR(depth=depth_maps(images_in(given)), processor=UNCROPPED, blend=0.0)
    _, plain = measured("llava", given.inputs)
    for plugin in (depth, VCD(alpha=0.0)):
        _, together = measured("llava", given.inputs, plugin)
        torch.testing.assert_close(together.shares, plain.shares, atol=1e-5, rtol=0)


def test_a_preview_of_scr_works_with_measured_attention() -> None:
    """SCR records attention in its preview through the measuring attention function."""
    inputs = request("llava", two_prompts("llava")).inputs
    scr, vlm = SCR(layers="0-2", diagnosis="1,3", sources=5, factor=1.3), model("llava")
    _, usual = measured("llava", inputs, scr)
    vlm.set_attn_implementation("eager")
    try:
        _, eager = measured("llava", inputs, scr)
    finally:
        vlm.set_attn_implementation("sdpa")
    torch.testing.assert_close(eager.shares, usual.shares, atol=1e-5, rtol=0)


def test_beams_and_fixed_caches_are_refused() -> None:
    inputs = request("llava", two_prompts("llava")[:1]).inputs
    with pytest.raises(UsageError, match="beams"):
        measured("llava", inputs, num_beams=2)
    with pytest.raises(UsageError, match="compiled"):
        measured("llava", inputs, cache_implementation="static")
