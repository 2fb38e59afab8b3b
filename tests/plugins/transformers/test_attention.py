"""Test recorded attention against eager attention, and that recording changes nothing."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qkedit.errors import QkeditError
from qkedit.plugins.core import recorded_attention
from qkedit.plugins.core.recorded_attention import AttentionRecorder, Reading
from qkedit.plugins.transformers.attention import recording
from tests.plugins.scr import scr_oracle
from tests.plugins.tiny_requests import model, request, two_prompts

FAMILIES = ("qwen2-vl", "qwen3-vl", "qwen3.5", "gemma3", "paligemma", "glm4v", "llava", "chameleon", "idefics3")
LAYERS = [1, 3]


def record(family, inputs, readings, implementation="sdpa"):
    """Return mean attention by layer and reading, and the logits of the recorded run."""
    tiny = model(family)
    recorder = AttentionRecorder(frozenset(LAYERS), readings)
    tiny.set_attn_implementation(implementation)
    try:
        with torch.no_grad(), recording(tiny.get_decoder().config, recorder):
            logits = tiny(**inputs, use_cache=False).logits
    finally:
        tiny.set_attn_implementation("sdpa")
    return recorder, logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_recorded_attention_equals_eager_attention(family, implementation):
    given = request(family, two_prompts(family))
    length = given.ids.shape[1]
    readings = [
        Reading(0, torch.tensor([length - 1, length - 3]), torch.tensor(sorted(given.cells[0]))),
        Reading(1, torch.arange(length - 4, length), torch.tensor(sorted(given.cells[1])[3:9])),
    ]
    recorder, _ = record(family, given.inputs, readings, implementation)
    eager = scr_oracle.eager_attention(model(family), given.inputs, LAYERS)
    for index, reading in enumerate(readings):
        for layer in LAYERS:
            expected = eager[layer][reading.row][:, reading.queries][:, :, reading.keys].mean(dim=(0, 1))
            torch.testing.assert_close(recorder.scores[layer][index], expected, atol=1e-6, rtol=1e-5)
        both = torch.stack([recorder.scores[layer][index] for layer in LAYERS]).mean(dim=0)
        assert torch.equal(recorder.mean()[index], both)
    assert set(recorder.scores) == set(LAYERS)


def test_recording_does_not_change_the_run_or_the_model():
    given = request("gemma3", two_prompts("gemma3"))
    tiny = model("gemma3")
    configs = [module.config._attn_implementation for module in tiny.modules() if hasattr(module, "config")]
    with torch.no_grad():
        plain = tiny(**given.inputs, use_cache=False).logits
    _, logits = record("gemma3", given.inputs, [Reading(0, torch.tensor([80]), torch.tensor([3]))])
    assert torch.equal(plain, logits)
    assert configs == [module.config._attn_implementation for module in tiny.modules() if hasattr(module, "config")]
    with pytest.raises(QkeditError), recording(tiny.get_decoder().config, AttentionRecorder(frozenset(), [])):
        raise QkeditError("stop")
    assert tiny.get_decoder().config._attn_implementation == "sdpa"


def test_the_config_names_the_original_attention_while_recording():
    """Flash attention receives the module, whose config must name the configured implementation."""
    seen = set()

    def by_name(module, *args, **kwargs):
        seen.add((module.config._attn_implementation, getattr(module, "layer_idx", None), module.is_causal))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("by_name", by_name)
    AttentionMaskInterface.register("by_name", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    given = request("llava", two_prompts("llava"))
    reading = [Reading(0, torch.tensor([given.ids.shape[1] - 1]), torch.tensor(sorted(given.cells[0])))]
    usual, logits = record("llava", given.inputs, reading)
    named, logits_by_name = record("llava", given.inputs, reading, "by_name")
    assert seen >= {("by_name", layer, True) for layer in range(4)}
    assert {name for name, *_ in seen} == {"by_name"}
    assert torch.equal(logits, logits_by_name)
    assert torch.equal(usual.mean()[0], named.mean()[0])


def test_rows_are_computed_in_blocks(monkeypatch):
    given = request("llava", two_prompts("llava"))
    length = given.ids.shape[1]
    readings = [Reading(1, torch.arange(length - 7, length), torch.arange(10, 30))]
    whole, _ = record("llava", given.inputs, readings)
    monkeypatch.setattr(recorded_attention, "BLOCK", 2 * 4 * length)  # two rows of four heads
    blocks, _ = record("llava", given.inputs, readings)
    for layer in LAYERS:
        torch.testing.assert_close(whole.scores[layer][0], blocks.scores[layer][0], atol=1e-7, rtol=1e-6)


def test_masks_of_flash_attention_are_understood():
    """Flash attention receives at most a padding mask and a window; its kernel is causal."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 9, 8, generator=generator), torch.randn(2, 2, 9, 8, generator=generator)
    padding = torch.ones(2, 9, dtype=torch.long)
    padding[1, :3] = 0
    reading = Reading(1, torch.tensor([5, 8]), torch.arange(9))
    for mask, window in ((padding, None), (padding, 4), (None, 4), (None, None)):
        found = recorded_attention.attention_scores(
            [reading], query, key, mask, {"sliding_window": window, "softcap": 2.0}
        )[0]
        expected = torch.zeros(9)
        for head in range(4):
            for row in (5, 8):
                visible = [
                    column
                    for column in range(row + 1)
                    if (mask is None or column >= 3) and (window is None or column > row - window)
                ]
                logits = [float(query[1, head, row] @ key[1, head // 2, column]) / 8**0.5 for column in visible]
                weights = torch.tensor([2.0 * torch.tensor(logit / 2.0).tanh() for logit in logits]).softmax(dim=0)
                for column, weight in zip(visible, weights, strict=True):
                    expected[column] += weight / 8
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
