"""Test that unsupported forms and configs are refused with a reason and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qkedit.checkpoint.architecture.layers import attention_layers
from qkedit.errors import CheckpointError
from tests.checkpoint.architecture.language_model import CONFIG, projections, refusal, written
from tests.checkpoint.written import opened, write_single


def test_shapes_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_attention_heads=8))
    assert "model.layers.0.self_attn.k_proj.weight" in message
    assert "[16, 32]" in message
    assert "8 query heads on 2 key heads of size 4" in message


def test_query_heads_that_are_not_a_multiple_of_key_heads_are_refused(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_key_value_heads=3), CheckpointError)
    assert "4 query heads" in message
    assert "3 key heads" in message


@pytest.mark.parametrize("value", [0, -4, 4.0, "4", True, [4], {}])
def test_a_head_count_that_is_not_a_positive_integer_is_refused(tmp_path: Path, value: Any) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_attention_heads=value), CheckpointError)
    assert "num_attention_heads" in message


def test_an_unknown_model_without_head_counts_is_refused(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, projections("model.layers.0"))
    del checkpoint.text_config["num_attention_heads"]
    assert "num_attention_heads" in refusal(checkpoint, CheckpointError)


ATTENTION = "model.layers.0.self_attn"
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "latent attention": ({f"{ATTENTION}.q_a_proj.weight": (8, 32), f"{ATTENTION}.kv_b_proj.weight": (8, 32)}, "MLA"),
    "fp8": ({**projections("model.layers.0"), f"{ATTENTION}.q_proj.weight_scale_inv": (1, 1)}, "quantised"),
    "GPTQ or AWQ": ({f"{ATTENTION}.q_proj.qweight": (4, 32), f"{ATTENTION}.q_proj.scales": (1, 32)}, "quantised"),
    "bitsandbytes": ({**projections("model.layers.0"), f"{ATTENTION}.k_proj.weight.absmax": (4,)}, "quantised"),
    "adapters": ({f"{ATTENTION}.q_proj.base_layer.weight": (32, 32)}, "LoRA"),
    "unknown norm": ({**projections("model.layers.0"), f"{ATTENTION}.q_norm.weight": (8,)}, "norm"),
    "without keys": ({f"{ATTENTION}.q_proj.weight": (32, 32)}, "k_proj"),
    "unknown layout": (
        {"model.layers.0.attention.query_key_value.weight": (64, 32)},
        "query_key_value.weight [64, 32]",
    ),
    "without attention": ({"model.layers.0.mixer.in_proj.weight": (64, 32)}, "mixer.in_proj.weight [64, 32]"),
    "different widths": ({**projections("model.layers.0"), f"{ATTENTION}.k_proj.weight": (16, 8)}, "keys read 8"),
    "encoder-decoder": (
        {
            **projections("model.language_model.decoder.layers.0"),
            "decoder.layers.0.encoder_attn.q_proj.weight": (8, 8),
        },
        "encoder-decoder",
    ),
    "two language models": (
        {**projections("model.layers.0"), **projections("language_model.model.layers.0")},
        "twice",
    ),
    "a bias of a wrong length": ({**projections("model.layers.0"), f"{ATTENTION}.k_proj.bias": (8,)}, "bias"),
}


QUANTISED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "FP8 or compressed-tensors": (
        {**projections("model.layers.0"), f"{ATTENTION}.q_proj.weight_scale": (32, 1)},
        "f2",
    ),
    "GPTQ or AWQ": ({f"{ATTENTION}.q_proj.qweight": (4, 32)}, "f2"),
    "integer weights": (projections("model.layers.0"), "i1"),
    # torchao splits a weight into several tensors with its own names.
    "torchao": ({f"{ATTENTION}.q_proj._weight_qdata": (32, 32), f"{ATTENTION}.q_proj._weight_scale": (32, 1)}, "f2"),
}


@pytest.mark.parametrize("form", QUANTISED)
def test_quantised_weights_are_refused_with_the_order_of_steps(tmp_path: Path, form: str) -> None:
    shapes, dtype = QUANTISED[form]
    checkpoint = written(tmp_path, shapes, dtype)
    checkpoint.config["quantization_config"] = {"quant_method": "any"}
    message = refusal(checkpoint)
    assert "quantised" in message
    assert message.endswith(
        "edit the unquantised checkpoint (BF16 or F16) first, then quantise or convert the edited directory "
        "(docs/deploying.md)."
    )


def test_a_model_with_other_quantised_parts_can_be_edited(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, projections("model.layers.0"))
    checkpoint.config["quantization_config"] = {"modules_to_not_convert": ["self_attn"]}
    assert attention_layers(checkpoint)


@pytest.mark.parametrize("form", REFUSED)
def test_unsupported_projections_are_refused(tmp_path: Path, form: str) -> None:
    shapes, message = REFUSED[form]
    assert message in refusal(written(tmp_path, shapes), CheckpointError)


def test_an_encoder_decoder_config_is_refused(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, projections("model.layers.0"), is_encoder_decoder=True)
    assert "encoder-decoder" in refusal(checkpoint)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4"])
def test_integer_projections_are_refused(tmp_path: Path, dtype: str) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), dtype))
    assert "q_proj.weight" in message
    assert "quantised" in message


def test_a_text_model_needs_allow_text_only(tmp_path: Path) -> None:
    config = {**CONFIG["text_config"], "num_hidden_layers": 1}  # type: ignore[dict-item]
    checkpoint = opened(write_single(tmp_path, projections("model.layers.0"), config))
    assert "--allow-text-only" in refusal(checkpoint)
    assert len(attention_layers(checkpoint, allow_text_only=True)) == 1
