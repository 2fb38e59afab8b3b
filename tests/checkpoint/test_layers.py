"""Which rows are which head: on checkpoints of transformers, on hand-written ones, and what is refused."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
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
    """A checkpoint of `shapes` and a vision tower, whose config counts the layers in them."""
    layers = {int(number) for name in shapes for number in re.findall(r"layers\.(\d+)\.", name)}
    settings = {**CONFIG["text_config"], "num_hidden_layers": max(layers, default=0) + 1, **text}  # type: ignore[dict-item]
    return opened(write_single(directory, {**VISION, **shapes}, {**CONFIG, "text_config": settings}, dtype))


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
        "thinker.model.layers",
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
def test_layers_that_are_not_in_the_shards(tmp_path: Path, layer_count: int) -> None:
    shapes = {**projections("model.layers.0"), **projections("model.layers.1")}
    message = refusal(written(tmp_path, shapes, num_hidden_layers=layer_count), CheckpointError)
    assert "no layer 2" in message


NORMED: dict[str, tuple[str, dict[str, tuple[int, ...]], bool, tuple[int, ...]]] = {
    "one set of gains": ("qwen3", {"q_norm": (8,), "k_norm": (8,)}, False, (0, 0, 0, 0)),
    "gains by head": ("cohere", {"q_norm": (4, 8), "k_norm": (2, 8)}, False, (0, 8, 16, 24)),
    "over all heads": ("qwen3", {"q_norm": (32,), "k_norm": (16,)}, True, (0, 8, 16, 24)),
    "other names": ("lfm2", {"q_layernorm": (8,), "k_layernorm": (8,)}, False, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("form", NORMED)
def test_norm_gains(tmp_path: Path, form: str) -> None:
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
    assert layer.key_norm is not None
    assert layer.key_norm.gain is not None
    assert layer.key_norm.gain.starts == starts[:2]


def test_norm_gains_of_another_length(tmp_path: Path) -> None:
    shapes = {**projections("model.layers.0"), "model.layers.0.self_attn.q_norm.weight": (7,)}
    message = refusal(written(tmp_path, shapes, model_type="qwen3", num_hidden_layers=1, head_dim=8))
    assert "[7]" in message
    assert "4 heads of size 8" in message


def test_layers_of_two_kinds(tmp_path: Path) -> None:
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
def test_any_config_is_understood_or_refused(
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


def test_layers_past_the_last_one_are_left_alone(tmp_path: Path) -> None:
    # GLM-4.5V stores its multi-token prediction head as one more layer.
    shapes = {**projections("model.layers.0"), **projections("model.layers.1"), **projections("model.layers.2")}
    assert [layer.index for layer in attention_layers(written(tmp_path, shapes, num_hidden_layers=2))] == [0, 1]


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
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 1}}
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
    config = {**CONFIG["text_config"], "num_hidden_layers": 1}  # type: ignore[dict-item]
    checkpoint = opened(write_single(tmp_path, projections("model.layers.0"), config))
    assert "--allow-text-only" in refusal(checkpoint)
    assert len(attention_layers(checkpoint, allow_text_only=True)) == 1


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
