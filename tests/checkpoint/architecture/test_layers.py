"""Test the assignment of rows to heads, on hand-written checkpoints."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.architecture.layers import attention_layers, attention_stack
from qkedit.checkpoint.architecture.rows import HeadCounts, head_starts, row_count
from qkedit.checkpoint.architecture.schema import HeadKind, RowOrder, RowScope
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.errors import CheckpointError
from tests.checkpoint.architecture.language_model import VISION, projections, refusal, written
from tests.checkpoint.written import opened, write_single


@pytest.mark.parametrize(
    "prefix",
    [
        "model.layers",
        "language_model.model.layers",
        "model.language_model.layers",
        "model.text_model.layers",
        "model.language_model.model.layers",
        "thinker.model.layers",
        "layers",
    ],
)
def test_layers_are_found_under_every_prefix(tmp_path: Path, prefix: str) -> None:
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
def test_layers_of_other_towers_are_ignored(tmp_path: Path, elsewhere: str) -> None:
    checkpoint = written(
        tmp_path, {**projections(f"{elsewhere}.0"), **projections("model.layers.0"), **projections("model.layers.1")}
    )
    assert [layer.query.tensor.name for layer in attention_layers(checkpoint)] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    ]


def test_biases_have_the_heads_of_their_weights(tmp_path: Path) -> None:
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


COUNTS = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "family", "decoder"),
    [
        # As Qwen2-VL was published: all settings at the top level.
        ({"model_type": "qwen2_vl", "vision_config": {}, **COUNTS}, "Qwen2-VL", "Qwen2-VL"),
        ({"model_type": "llava", "text_config": {"model_type": "qwen2", **COUNTS}}, "LLaVA-1.5", "Qwen2"),
        ({"model_type": "llava", "text_config": COUNTS}, "LLaVA-1.5", "Llama"),
        (
            {"model_type": "llava", "vision_config": {"model_type": "pixtral"}, "text_config": COUNTS},
            "Pixtral",
            "Mistral",
        ),
        ({"model_type": "brand_new", "text_config": {"model_type": "mistral", **COUNTS}}, "unknown", "Mistral"),
        ({"model_type": "brand_new", "llm_config": {"model_type": "newer", **COUNTS}}, "unknown", "unknown"),
        (COUNTS, "unknown", "unknown"),
    ],
)
def test_family_and_decoder_come_from_the_config(
    tmp_path: Path, config: dict[str, Any], family: str, decoder: str
) -> None:
    checkpoint = opened(write_single(tmp_path, {**VISION, **projections("model.layers.0")}, config))
    stack = attention_stack(checkpoint)
    assert (stack.family, stack.decoder) == (family, decoder)
    assert (stack.layers[0].query_heads, stack.layers[0].key_heads) == (4, 2)


def test_layers_without_attention_are_skipped_and_named(tmp_path: Path) -> None:
    shapes = {
        **projections("model.layers.1"),
        "model.layers.0.cross_attn.q_proj.weight": (32, 32),
        "model.layers.0.input_layernorm.weight": (32,),
        "model.layers.2.mlp.up_proj.weight": (32, 32),
    }
    stack = attention_stack(written(tmp_path, shapes, num_hidden_layers=3))
    assert [layer.index for layer in stack.layers] == [1]
    assert [(layer.index, layer.reason) for layer in stack.skipped] == [
        (0, "has no self-attention, but cross_attn"),
        (2, "has no self-attention"),
    ]
    assert stack.layer_count == 3


@pytest.mark.parametrize("layer_count", [3, 10**18])
def test_layers_missing_from_the_shards_are_refused(tmp_path: Path, layer_count: int) -> None:
    shapes = {**projections("model.layers.0"), **projections("model.layers.1")}
    message = refusal(written(tmp_path, shapes, num_hidden_layers=layer_count), CheckpointError)
    assert "do not hold layer 2" in message


NORMED: dict[str, tuple[str, dict[str, tuple[int, ...]], bool, tuple[int, ...]]] = {
    "one set of gains": ("qwen3", {"q_norm": (8,), "k_norm": (8,)}, False, (0, 0, 0, 0)),
    "gains by head": ("cohere", {"q_norm": (4, 8), "k_norm": (2, 8)}, False, (0, 8, 16, 24)),
    "over all heads": ("qwen3", {"q_norm": (32,), "k_norm": (16,)}, True, (0, 8, 16, 24)),
    "other names": ("lfm2", {"q_layernorm": (8,), "k_layernorm": (8,)}, False, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("form", NORMED)
def test_norm_gains_are_found_for_every_layout(tmp_path: Path, form: str) -> None:
    model_type, norms, across, starts = NORMED[form]
    shapes = {f"model.layers.0.self_attn.{name}.weight": shape for name, shape in norms.items()}
    checkpoint = written(
        tmp_path,
        {**projections("model.layers.0"), **shapes},
        model_type=model_type,
        num_hidden_layers=1,
        head_dim=8,
        use_qk_norm=True,
    )
    (layer,) = attention_layers(checkpoint)
    assert layer.query_norm is not None
    assert layer.query_norm.gain is not None
    assert layer.query_norm.gain.starts == starts
    assert layer.query_norm.across_heads == across
    assert layer.norm_kind == layer.query_norm.name == layer.query_norm.kind + (" over all heads" if across else "")
    assert layer.key_norm is not None
    assert layer.key_norm.gain is not None
    assert layer.key_norm.gain.starts == starts[:2]


def test_norm_gains_of_a_wrong_length_are_refused(tmp_path: Path) -> None:
    shapes = {**projections("model.layers.0"), "model.layers.0.self_attn.q_norm.weight": (7,)}
    message = refusal(written(tmp_path, shapes, model_type="qwen3", num_hidden_layers=1, head_dim=8))
    assert "[7]" in message
    assert "4 heads of size 8" in message


def test_global_and_local_layers_have_their_own_head_counts(tmp_path: Path) -> None:
    # Gemma 4: global layers have fewer and longer key heads; the last layer reads the keys of an earlier one.
    shapes = {
        **projections("model.layers.0", 32, 16),
        **projections("model.layers.1", 64, 16),
        **projections("model.layers.2", 32, 16),
    }
    checkpoint = written(
        tmp_path,
        shapes,
        model_type="gemma4_text",
        num_hidden_layers=3,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        num_kv_shared_layers=1,
    )
    stack = attention_stack(checkpoint)
    assert [(layer.key_heads, layer.head_size) for layer in stack.layers] == [(2, 8), (1, 16)]
    assert [(layer.index, layer.reason) for layer in stack.skipped] == [(2, "reads the keys of an earlier layer")]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.floats(allow_nan=True)
    | st.sampled_from(["", "llama", "rms"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["0", "model_type"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "num_global_key_value_heads",
                "head_dim",
                "hidden_size",
                "per_layer_config",
                "layer_types",
                "num_kv_shared_layers",
                "sliding_window_pattern",
                "no_rope_layers",
                "use_qk_norm",
                "vision_config",
                "text_config",
            ]
        ),
        json_values,
    ),
    st.sampled_from(["llama", "gemma4_text", "cohere2", "llama4_text", "exaone4", "qwen3_5_text", "internlm2", "x"]),
)
def test_any_config_is_accepted_or_refused(
    plain_checkpoint: Checkpoint, settings: dict[str, Any], model_type: str
) -> None:
    config = {**settings, "model_type": model_type}
    for variant in (config, {"text_config": config, "vision_config": settings.get("vision_config")}):
        # Anything but a CheckpointError fails the test.
        with suppress(CheckpointError):
            assert attention_stack(replace(plain_checkpoint, config=variant)).layers


@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    shapes = {**projections("model.layers.0"), **projections("model.layers.1")}
    return written(tmp_path_factory.mktemp("plain"), shapes)


def test_layers_beyond_the_configured_number_are_ignored(tmp_path: Path) -> None:
    # GLM-4.5V stores its multi-token prediction head as an additional layer.
    shapes = {**projections("model.layers.0"), **projections("model.layers.1"), **projections("model.layers.2")}
    assert [layer.index for layer in attention_layers(written(tmp_path, shapes, num_hidden_layers=2))] == [0, 1]


def test_head_dim_overrides_hidden_size_over_heads(tmp_path: Path) -> None:
    shapes = {**projections("model.layers.0", 64, 32), **projections("model.layers.1", 64, 32)}
    first, _ = attention_layers(written(tmp_path, shapes, head_dim=16))
    assert first.query.starts == (0, 16, 32, 48)


@pytest.mark.parametrize("key_heads", [None, "absent"])
def test_without_a_number_of_key_heads_attention_is_multi_head(tmp_path: Path, key_heads: str | None) -> None:
    shapes = {**projections("model.layers.0", key=32), **projections("model.layers.1", key=32)}
    checkpoint = written(tmp_path, shapes, num_key_value_heads=None)
    if key_heads == "absent":
        del checkpoint.text_config["num_key_value_heads"]
    assert attention_layers(checkpoint)[0].group_size == 1


def test_missing_settings_take_the_defaults_of_the_config_class(tmp_path: Path) -> None:
    # The published LLaVA-1.5 config names little more than the type "llama" for its language model.
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 1}}
    shapes = {**VISION, **projections("language_model.model.layers.0", 4096, 4096, hidden=1)}
    (first,) = attention_layers(opened(write_single(tmp_path, shapes, config)))
    assert (first.query_heads, first.key_heads, first.query.head_size) == (32, 32, 128)


@given(
    st.sampled_from(RowScope),
    st.lists(st.sampled_from(HeadKind), min_size=1, max_size=4, unique=True),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_heads_cover_every_row_of_a_fused_tensor_once(
    per: RowScope, kinds: list[HeadKind], group: int, key_heads: int, size: int
) -> None:
    if per is RowScope.QUERY_HEAD:
        kinds = [kind for kind in kinds if kind in (HeadKind.QUERY, HeadKind.GATE)] or [HeadKind.QUERY]
    rows, counts = (
        RowOrder("qkv", per, tuple(kinds)),
        HeadCounts(group * key_heads, key_heads, size),
    )
    covered = sorted(
        row for kind in kinds for start in head_starts(rows, kind, counts) for row in range(start, start + size)
    )
    assert covered == list(range(row_count(rows, counts)))
    for kind in kinds:
        starts = head_starts(rows, kind, counts)
        assert len(starts) == counts.of(kind)
        assert list(starts) == sorted(starts)


def test_rows_may_be_grouped_by_key_head() -> None:
    # InternLM2: rearrange(wqkv, "(h gs d) … -> h gs d", gs=2 + G) with queries first, then key, then value.
    rows, counts = (
        RowOrder("wqkv", RowScope.KEY_HEAD, (HeadKind.QUERY, HeadKind.KEY, HeadKind.VALUE)),
        HeadCounts(4, 2, 10),
    )
    assert head_starts(rows, HeadKind.QUERY, counts) == (0, 10, 40, 50)
    assert head_starts(rows, HeadKind.KEY, counts) == (20, 60)
