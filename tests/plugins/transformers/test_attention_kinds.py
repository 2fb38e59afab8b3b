"""Test plug-ins with attention that has no complete masks, like flash and flex attention.

These kernels do not run on every machine, so replacements with the same signature do the same computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    add_offsets_to_mask_function,
    and_masks,
    padding_mask_function,
)

import qkedit
from qkedit import DSCR, SCR
from qkedit.errors import UnsupportedForm
from qkedit.plugins.measures.attention_shares import AttentionShares
from tests.plugins import tiny_requests
from tests.plugins.dscr.dscr_requests import UNCROPPED, depth_maps, images_in
from tests.plugins.tiny_requests import request, two_prompts
from tests.plugins.transformers.test_prefill import GREEDY, assert_same

FLASH, FLEX = "kernels-community/flash-stand-in", "flex_stand_in"


def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """Compute each prompt separately without padding: causal, and within the layer's window if it has one."""
    assert module.config._attn_implementation == FLASH  # the real one finds its kernel by it
    assert mask is None or mask.ndim == 2
    output = torch.zeros_like(query)
    for row in range(query.shape[0]):
        real = torch.ones(key.shape[2], dtype=torch.bool) if mask is None else mask[row].bool()
        asked = real[-query.shape[2] :]
        visible = torch.ones(int(real.sum()), int(real.sum()), dtype=torch.bool).tril()
        if kwargs.get("sliding_window") is not None:
            visible = visible.triu(1 - kwargs["sliding_window"])
        own = dense(
            query[row, :, asked],
            key[row, :, real],
            value[row, :, real],
            visible[-int(asked.sum()) :],
            kwargs["scaling"],
        )
        output[row, :, asked] = own
    return output.transpose(1, 2), None


def flex(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, **kwargs: Any) -> Any:
    """Compute each head's pairs by the block mask's function."""
    assert isinstance(mask, BlockMask)
    rows = torch.arange(query.shape[0])[:, None, None]
    visible = mask.mask_mod(rows, torch.tensor(0), torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2]))
    return dense(query, key, value, visible[:, None], kwargs["scaling"]).transpose(1, 2), None


def dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
    key, value = (states.repeat_interleave(query.shape[-3] // states.shape[-3], dim=-3) for states in (key, value))
    logits = (query @ key.mT * scaling).masked_fill(~visible, -torch.inf)
    # A padding token attends to no column, and its output is not used.
    return logits.softmax(dim=-1).nan_to_num() @ value


def block_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    mask_function: Any,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> BlockMask:
    """Return transformers' masks for flex attention, without compiling it."""
    if attention_mask is not None:
        mask_function = and_masks(mask_function, padding_mask_function(attention_mask))
    shifted = add_offsets_to_mask_function(mask_function, q_offset, kv_offset)
    return create_block_mask(shifted, batch_size, None, q_length, kv_length, device="cpu")


@pytest.fixture
def stand_ins() -> Iterator[None]:
    AttentionInterface.register(FLASH, flash)
    AttentionMaskInterface.register(FLASH, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    AttentionInterface.register(FLEX, flex)
    AttentionMaskInterface.register(FLEX, block_mask)
    yield
    for known in (AttentionInterface, AttentionMaskInterface):
        for name in (f"{kind}{ending}" for kind in (FLASH, FLEX) for ending in ("", "_recorded", "_scored")):
            known._global_mapping.pop(name, None)


def plugins(given: tiny_requests.Request) -> dict[str, Any]:
    maps = depth_maps(images_in(given))
    return {
        "scr": SCR(sources=5, factor=1.3),
        "dscr": DSCR(depth=maps, processor=UNCROPPED),
        "dscr over the question": DSCR(depth=maps, processor=UNCROPPED, when="image"),
    }


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", [FLASH, FLEX])
@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "llava", "mistral3", "internvl", "chameleon"])
def test_plugins_give_equal_answers_with_any_attention(family: str, kind: str) -> None:
    """In a padded batch, recorded rows must exclude padding like the kernel."""
    tiny, given = tiny_requests.model.__wrapped__(family), request(family, two_prompts(family))
    usual, decoder = tiny.config._attn_implementation, tiny.get_decoder()

    def answers(implementation: str, *own: Any) -> tuple[Tensor, Any]:
        decoder.config._attn_implementation = {"": implementation}
        if not own:
            return torch.stack(tiny.generate(**given.inputs, **GREEDY).logits), None
        with qkedit.attach(tiny, *own) as attached:
            found = torch.stack(tiny.generate(**given.inputs, **GREEDY).logits)
        assert decoder.config._attn_implementation == implementation
        return found, attached.report()[0].plugins

    plain, _ = answers(kind)
    for name, plugin in plugins(given).items():
        expected, report = answers(usual, plugin)
        found, other_report = answers(kind, plugin)
        assert_same(found, expected)
        assert (found - plain).abs().max() > 1e-3, name
        if name == "scr":
            assert report["scr"].sources == other_report["scr"].sources > 0


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("family", "kind", "text"),
    [
        ("qwen2-vl", FLASH, {}),
        ("qwen2-vl", FLEX, {}),
        ("mistral3", FLASH, {"sliding_window": 8}),
        ("gemma3", FLEX, {}),  # tokens of an image attend to each other, which flash attention does not support
    ],
)
def test_shares_are_measured_with_any_attention(family: str, kind: str, text: dict[str, Any]) -> None:
    """Cover sliding windows, before and after the cache has dropped columns."""
    tiny, given = tiny_requests.model.__wrapped__(family, **text), request(family, two_prompts(family))
    shares = []
    for implementation in ("sdpa", kind):
        tiny.get_decoder().config._attn_implementation = {"": implementation}
        with qkedit.attach(tiny, AttentionShares()) as attached:
            tiny.generate(**given.inputs, **GREEDY)
        shares.append(attached.report()[0].plugins["attention"].shares)
    torch.testing.assert_close(shares[1], shares[0], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("stand_ins")
def test_precomputed_masks_of_flex_attention_are_not_cut() -> None:
    """Gemma 3 makes its masks before its decoder runs; a run over the whole prompt uses them unchanged."""
    tiny, given = tiny_requests.model.__wrapped__("gemma3"), request("gemma3", two_prompts("gemma3"))
    with torch.no_grad():
        with qkedit.attach(tiny, SCR()):
            expected = tiny(**given.inputs).logits[:, -1]
            tiny.get_decoder().config._attn_implementation = {"": FLEX}
            assert_same(tiny(**given.inputs).logits[:, -1], expected)
        maps = depth_maps(images_in(given))
        with qkedit.attach(tiny, DSCR(depth=maps)), pytest.raises(UnsupportedForm, match=r"BlockMask.*sdpa"):
            tiny(**given.inputs)
