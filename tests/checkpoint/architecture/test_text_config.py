"""Test records' defaults against transformers' config classes, and settings that differ by layer."""

from __future__ import annotations

from typing import Any

import pytest

from qkedit.checkpoint.architecture.library import architectures
from qkedit.checkpoint.architecture.rows import HeadCounts
from qkedit.checkpoint.architecture.schema import Decoder, Rotation
from qkedit.checkpoint.architecture.text_config import TextConfig
from qkedit.errors import CheckpointError
from tests import tiny_configs

# Remote code: transformers has no class for these.
REMOTE = {"internlm2", "phi3_v", "qwen"}
MODEL_TYPES = {name for decoder in architectures().decoders.values() for name in decoder.model_types}


def decoder(model_type: str) -> Decoder:
    found = architectures().decoder_of(model_type)
    assert found is not None
    return found


def settings(model_type: str, **text_config: Any) -> TextConfig:
    return TextConfig.of(decoder(model_type), text_config)


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES - REMOTE))
def test_defaults_equal_those_of_the_config_class(model_type: str) -> None:
    from transformers import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[model_type]().to_dict()
    ours = settings(model_type)
    assert ours.count("num_hidden_layers") == theirs["num_hidden_layers"]
    heads = theirs["num_attention_heads"]
    assert ours.head_counts()[0] == HeadCounts(
        heads,
        theirs.get("num_key_value_heads") or heads,
        theirs.get("head_dim") or theirs["hidden_size"] // heads,
    )
    for name, value in decoder(model_type).defaults.items():
        if name in theirs and name != "num_key_value_heads":
            assert theirs[name] == (list(value) if isinstance(value, tuple) else value), name


def test_null_key_heads_means_multi_head_instead_of_the_default() -> None:
    assert settings("mistral").head_counts()[0].key_heads == 8
    assert settings("mistral", num_key_value_heads=None).head_counts()[0].key_heads == 32


def test_published_gemma_4_has_two_head_sizes() -> None:
    published = settings(
        "gemma4_text", head_dim=256, global_head_dim=512, num_key_value_heads=8, num_global_key_value_heads=2
    )
    assert HeadCounts(8, 8, 256) in published.head_counts()
    assert HeadCounts(8, 2, 512) in published.head_counts()


def test_gemma_4_saved_by_transformers_has_settings_per_layer() -> None:
    saved = settings("gemma4_text", head_dim=256, num_key_value_heads=4, per_layer_config={"5": {"head_dim": 512}})
    assert saved.for_layer(4).head_counts()[0].head_size == 256
    assert saved.for_layer(5).head_counts()[0].head_size == 512


@pytest.mark.parametrize(("shared", "expected"), [(0, []), (2, [2, 3]), (None, [])])
def test_the_last_layers_share_keys(shared: int | None, expected: list[int]) -> None:
    found = settings("gemma4_text", num_kv_shared_layers=shared)
    assert [index for index in range(4) if found.shares_keys(index, 4)] == expected


@pytest.mark.parametrize(
    ("model_type", "config", "unrotated"),
    [
        ("llama4_text", {"no_rope_layers": [1, 0, 1, 1]}, [1]),
        ("llama4_text", {"no_rope_layers": []}, [3]),
        ("llama4_text", {"no_rope_layer_interval": 2}, [1, 3]),
        ("cohere2", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}, [0]),
        ("cohere2", {"sliding_window_pattern": 2}, [1, 3]),
        ("exaone4", {"sliding_window": None}, []),
        ("exaone4", {"sliding_window": 8, "sliding_window_pattern": "LLG"}, [2]),
        ("llama", {}, []),
    ],
)
def test_layers_without_rotation_are_found(model_type: str, config: dict[str, Any], unrotated: list[int]) -> None:
    found = settings(model_type, **config)
    assert [index for index in range(4) if found.rope(index) is Rotation.NONE] == unrotated


def test_an_invalid_period_is_refused() -> None:
    with pytest.raises(CheckpointError, match="sliding_window_pattern"):
        settings("cohere2", sliding_window_pattern=-1).rope(0)


def test_every_recorded_family_is_built_by_a_test() -> None:
    recorded = {model_type for family in architectures().families.values() for model_type in family.model_types}
    built = {specification["model_type"] for specification in tiny_configs.FAMILIES.values()}
    by_hand = {"qwen", "internvl_chat"}
    # They share a decoder with another family, or (Gemma 3n) are tested as a language model only.
    by_decoder = {"glm46v", "deepseek_vl_hybrid", "gemma3n"}
    assert recorded == built | by_hand | by_decoder
