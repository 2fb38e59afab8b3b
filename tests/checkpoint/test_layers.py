"""Which rows are which head: on checkpoints of transformers, on hand-written ones, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.layers import attention_layers, attention_stack
from qkedit.checkpoint.records import Rows
from qkedit.checkpoint.rows import HeadCounts, head_starts, row_count
from qkedit.errors import CheckpointError, UnsupportedForm
from tests.checkpoint.written import opened, write_single

CONFIG = {
    "model_type": "some_new_model",
    "text_config": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
VISION = {"vision_tower.layers.0.self_attn.q_proj.weight": (8, 8)}


def projections(layer: str, query: int = 32, key: int = 16, hidden: int = 32) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.self_attn.q_proj.weight": (query, hidden),
        f"{layer}.self_attn.k_proj.weight": (key, hidden),
        f"{layer}.self_attn.v_proj.weight": (key, hidden),
        f"{layer}.mlp.up_proj.weight": (4, hidden),
    }


def written(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "f2", **text: Any) -> Checkpoint:
    config = {**CONFIG, "text_config": {**CONFIG["text_config"], **text}}  # type: ignore[dict-item]
    return opened(write_single(directory, {**VISION, **shapes}, config, dtype))


def refusal(checkpoint: Checkpoint, kind: type[CheckpointError] = UnsupportedForm) -> str:
    with pytest.raises(kind) as caught:
        attention_layers(checkpoint)
    assert caught.value.remedy, "every refusal says what to do"
    return str(caught.value)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.layers",
        "language_model.model.layers",
        "model.language_model.layers",
        "model.text_model.layers",
        "model.language_model.model.layers",
        "layers",
    ],
)
def test_every_prefix(tmp_path: Path, prefix: str) -> None:
    checkpoint = written(tmp_path, {**projections(f"{prefix}.0"), **projections(f"{prefix}.1")})
    layers = attention_layers(checkpoint)
    assert [layer.index for layer in layers] == [0, 1]
    first = layers[0]
    assert first.query.tensor is checkpoint.tensors[f"{prefix}.0.self_attn.q_proj.weight"]
    assert first.query.starts == (0, 8, 16, 24)
    assert first.key.starts == (0, 8)
    assert (first.query_heads, first.key_heads, first.group_size, first.query.head_size) == (4, 2, 2, 8)
    assert first.query_bias is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        "mtp.layers",
        "model.mtp.layers",
        "vision_tower.vision_model.encoder.layers",
        "model.visual.blocks",
        "model.connector.perceiver_resampler.layers",
        "audio_tower.layers",
    ],
)
def test_other_towers_are_left_alone(tmp_path: Path, elsewhere: str) -> None:
    checkpoint = written(
        tmp_path, {**projections(f"{elsewhere}.0"), **projections("model.layers.0"), **projections("model.layers.1")}
    )
    assert [layer.query.tensor.name for layer in attention_layers(checkpoint)] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    ]


def test_biases(tmp_path: Path) -> None:
    shapes = {
        **projections("model.layers.0"),
        **projections("model.layers.1"),
        "model.layers.0.self_attn.q_proj.bias": (32,),
        "model.layers.0.self_attn.k_proj.bias": (16,),
    }
    first, second = attention_layers(written(tmp_path, shapes))
    assert first.query_bias is not None
    assert first.query_bias.starts == first.query.starts
    assert first.key_bias is not None
    assert first.key_bias.tensor.name == "model.layers.0.self_attn.k_proj.bias"
    assert second.key_bias is None


def test_layers_without_attention_are_skipped_and_named(tmp_path: Path) -> None:
    shapes = {**projections("model.layers.1"), "model.layers.0.cross_attn.q_proj.weight": (32, 32)}
    stack = attention_stack(written(tmp_path, shapes, num_hidden_layers=3))
    assert [layer.index for layer in stack.layers] == [1]
    assert [layer.index for layer in stack.skipped] == [0, 2]
    assert stack.layer_count == 3


def test_layers_past_the_last_one_are_left_alone(tmp_path: Path) -> None:
    # GLM-4.5V stores its multi-token prediction head as one more layer.
    shapes = {**projections("model.layers.0"), **projections("model.layers.1"), **projections("model.layers.2")}
    assert [layer.index for layer in attention_layers(written(tmp_path, shapes))] == [0, 1]


def test_a_head_size_that_is_not_hidden_over_heads(tmp_path: Path) -> None:
    shapes = {**projections("model.layers.0", 64, 32), **projections("model.layers.1", 64, 32)}
    first, _ = attention_layers(written(tmp_path, shapes, head_dim=16))
    assert first.query.starts == (0, 16, 32, 48)


@pytest.mark.parametrize("key_heads", [None, "absent"])
def test_no_number_of_key_heads_means_multi_head(tmp_path: Path, key_heads: str | None) -> None:
    shapes = {**projections("model.layers.0", key=32), **projections("model.layers.1", key=32)}
    checkpoint = written(tmp_path, shapes, num_key_value_heads=None)
    if key_heads == "absent":
        del checkpoint.text_config["num_key_value_heads"]
    assert attention_layers(checkpoint)[0].group_size == 1


def test_defaults_of_the_config_class_count_where_the_config_is_silent(tmp_path: Path) -> None:
    # The published LLaVA-1.5 config says of its language model little more than "llama".
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    shapes = {**VISION, **projections("language_model.model.layers.0", 4096, 4096, hidden=1)}
    (first,) = attention_layers(opened(write_single(tmp_path, shapes, config)))
    assert (first.query_heads, first.key_heads, first.query.head_size) == (32, 32, 128)


def test_shapes_decide_against_the_config(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_attention_heads=8))
    assert "model.layers.0.self_attn.k_proj.weight" in message
    assert "[16, 32]" in message
    assert "8 query heads on 2 key heads of size 4" in message


def test_heads_that_cannot_share_evenly(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_key_value_heads=3), CheckpointError)
    assert "4 query heads" in message
    assert "3 key heads" in message


@pytest.mark.parametrize("value", [0, -4, 4.0, "4", True, [4], {}])
def test_counts_that_are_no_counts(tmp_path: Path, value: Any) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), num_attention_heads=value), CheckpointError)
    assert "num_attention_heads" in message


def test_a_silent_config_of_an_unknown_model(tmp_path: Path) -> None:
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
    "norm of an unknown kind": ({**projections("model.layers.0"), f"{ATTENTION}.q_norm.weight": (8,)}, "norm"),
    "no keys": ({f"{ATTENTION}.q_proj.weight": (32, 32)}, "k_proj"),
    "unknown layout": (
        {"model.layers.0.attention.query_key_value.weight": (64, 32)},
        "query_key_value.weight [64, 32]",
    ),
    "no attention at all": ({"model.layers.0.mixer.in_proj.weight": (64, 32)}, "mixer.in_proj.weight [64, 32]"),
    "different widths": ({**projections("model.layers.0"), f"{ATTENTION}.k_proj.weight": (16, 8)}, "keys 8"),
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
    "a bias of another length": ({**projections("model.layers.0"), f"{ATTENTION}.k_proj.bias": (8,)}, "bias"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused_forms(tmp_path: Path, form: str) -> None:
    shapes, message = REFUSED[form]
    assert message in refusal(written(tmp_path, shapes), CheckpointError)


def test_encoder_decoder_by_its_config(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, projections("model.layers.0"), is_encoder_decoder=True)
    assert "encoder-decoder" in refusal(checkpoint)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4"])
def test_projections_that_are_no_floats(tmp_path: Path, dtype: str) -> None:
    message = refusal(written(tmp_path, projections("model.layers.0"), dtype))
    assert "q_proj.weight" in message
    assert "quantised" in message


def test_text_only(tmp_path: Path) -> None:
    checkpoint = opened(
        write_single(tmp_path, {**projections("model.layers.0"), **projections("model.layers.1")}, CONFIG)
    )
    assert "--allow-text-only" in refusal(checkpoint)
    assert len(attention_layers(checkpoint, allow_text_only=True)) == 2


@given(
    st.sampled_from(["query head", "key head", "layer"]),
    st.lists(st.sampled_from(["query", "key", "value", "gate"]), min_size=1, max_size=4, unique=True),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_heads_tile_a_fused_tensor(per: str, kinds: list[str], group: int, key_heads: int, size: int) -> None:
    if per == "query head":
        kinds = [kind for kind in kinds if kind in ("query", "gate")] or ["query"]
    rows, counts = Rows("qkv", per, tuple(kinds)), HeadCounts(group * key_heads, key_heads, size)
    covered = sorted(
        row for kind in kinds for start in head_starts(rows, kind, counts) for row in range(start, start + size)
    )
    assert covered == list(range(row_count(rows, counts)))
    for kind in kinds:
        starts = head_starts(rows, kind, counts)
        assert len(starts) == counts.of(kind)
        assert list(starts) == sorted(starts)


def test_rows_grouped_by_key_head() -> None:
    # InternLM2: rearrange(wqkv, "(h gs d) … -> h gs d", gs=2 + G) with queries first, then key, then value.
    rows, counts = Rows("wqkv", "key head", ("query", "key", "value")), HeadCounts(4, 2, 10)
    assert head_starts(rows, "query", counts) == (0, 10, 40, 50)
    assert head_starts(rows, "key", counts) == (20, 60)
