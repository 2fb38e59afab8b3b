"""Test the rotations of every family against transformers' rotary modules."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError, UnsupportedForm
from qkedit.inspection.positions import rotary_positions
from qkedit.spectral.rotary import RotaryPositions
from tests import tiny_models

OFFSET = (9, 4, -3)
# Llama 4 and Phi-4 have no rotary module of this form; DeepSeek-VL and the others share decoders with these.
FAMILIES = (
    "qwen2-vl",
    "qwen3-vl",
    "qwen3-vl-moe",
    "qwen3.5",
    "llava",
    "gemma3",
    "glm4v",
    "glm4v-moe",
    "glm-ocr",
    "ernie4.5-vl",
    "paddleocr-vl",
    "aya-vision",
    "cohere2-vision",
    "exaone4.5",
    "lfm2-vl",
    "paligemma",
    "gemma4",
    "mllama",
)


def rotary_module(model: torch.nn.Module) -> torch.nn.Module:
    found = [
        module
        for name, module in model.named_modules()
        if name.endswith("rotary_emb") and "visual" not in name and "vision" not in name
    ]
    assert len(found) == 1, [type(module).__name__ for module in found]
    return found[0]


def measured_rotation(model: Any, head_size: int, layer_type: str | None, multimodal: bool) -> torch.Tensor:
    """Return `R_n` from the model's modules on unit queries and keys, the query `OFFSET` after the key."""
    rotary = rotary_module(model)
    key_place = torch.tensor([5, 7, 11])
    places = torch.stack([key_place + torch.tensor(OFFSET), key_place], dim=1)  # [axis, position]
    places = places.unsqueeze(1) if multimodal else places[:1]
    arguments = [torch.zeros(1, 2, head_size), places] + ([layer_type] if layer_type else [])
    cos, sin = rotary(*arguments)
    units = torch.eye(head_size).view(1, head_size, 1, head_size).expand(1, head_size, 2, head_size)
    module = importlib.import_module(type(rotary).__module__)
    if "k" in module.apply_rotary_pos_emb.__code__.co_varnames[:2]:
        queries, keys = module.apply_rotary_pos_emb(units, units, cos, sin)
    else:  # rotates one tensor at a time
        queries = keys = module.apply_rotary_pos_emb(units, cos, sin)
    # Entry (i, j) is the logit of unit query i at the later position and unit key j at the earlier one: R_nᵀ.
    return (queries[0, :, 0] @ keys[0, :, 1].T).T


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("positions")


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_equal_those_of_the_model(family: str, directory: Path) -> None:
    checkpoint = open_checkpoint(LocalFiles(tiny_models.build(family, directory / family)))
    model = tiny_models.model(family, "float32")
    stack = attention_stack(checkpoint)
    text_config = model.config.get_text_config()
    kinds = getattr(text_config, "layer_types", None)
    per_kind = isinstance(text_config.rope_parameters, dict) and kinds and kinds[0] in text_config.rope_parameters
    rotated = 0
    for layer in stack.layers:
        positions = rotary_positions(checkpoint, stack.decoder, layer)
        if positions is None:
            continue
        rotated += 1
        layer_type = kinds[layer.index] if per_kind else None
        expected = measured_rotation(model, layer.head_size, layer_type, "multimodal" in layer.rope)
        offset = OFFSET if positions.axes else (OFFSET[0],) * 3
        torch.testing.assert_close(positions.rotation(offset).float(), expected, rtol=0, atol=2e-5)
    assert rotated > 0


def test_layers_without_positions_have_no_rotation(directory: Path) -> None:
    checkpoint = open_checkpoint(LocalFiles(tiny_models.build("cohere2-vision", directory / "unrotated")))
    stack = attention_stack(checkpoint)
    unrotated = [layer.index for layer in stack.layers if rotary_positions(checkpoint, stack.decoder, layer) is None]
    kinds = checkpoint.text_config["layer_types"]
    assert unrotated == [index for index, kind in enumerate(kinds) if kind == "full_attention"]


def positions_with(directory: Path, **settings: Any) -> RotaryPositions | None:
    """Return the positions of a tiny Qwen2-VL with `settings` in its text config."""
    base = directory / "with-settings"
    if not base.exists():
        tiny_models.build("qwen2-vl", base)
        (base / "original.json").write_text((base / "config.json").read_text())
    config = json.loads((base / "original.json").read_text())
    (config.get("text_config") or config).update(settings)
    (base / "config.json").write_text(json.dumps(config))
    checkpoint: Checkpoint = open_checkpoint(LocalFiles(base))
    stack = attention_stack(checkpoint)
    return rotary_positions(checkpoint, stack.decoder, stack.layers[0])


SCALED: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [4.0] * 8,
    },
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
)


@pytest.mark.parametrize("parameters", SCALED, ids=lambda parameters: parameters["rope_type"])
def test_scaled_frequencies_equal_those_of_transformers(parameters: dict[str, Any], directory: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_theta": 5000.0, **parameters}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=256, rope_parameters=settings
    )
    kind = parameters["rope_type"]
    if kind == "default":
        expected = 5000.0 ** -(torch.arange(0, 16, 2) / 16)
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    found = positions_with(directory, rope_parameters={**settings, "mrope_section": [2, 3, 3]})
    assert found is not None
    torch.testing.assert_close(torch.tensor(found.frequencies), expected, rtol=1e-5, atol=0)


def test_the_published_settings_of_qwen2_vl_are_understood(directory: Path) -> None:
    """Test `rope_scaling` of type "mrope", with the base in a separate key."""
    found = positions_with(
        directory,
        rope_parameters=None,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        rope_theta=100.0,
    )
    assert found is not None
    assert found.axes == (0, 0, 1, 1, 1, 2, 2, 2)
    torch.testing.assert_close(torch.tensor(found.frequencies), 100.0 ** -(torch.arange(0, 16, 2) / 16))


def test_the_published_settings_of_gemma_3_are_understood(directory: Path) -> None:
    """Test a separate base for sliding layers, and scaling for the others."""
    base = tiny_models.build("gemma3", directory / "published-gemma3")
    config = json.loads((base / "config.json").read_text())
    text = config["text_config"]
    text.pop("rope_parameters")
    text.pop("layer_types")
    text.update(
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=2,
    )
    (base / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(LocalFiles(base))
    stack = attention_stack(checkpoint)
    sliding, full = (rotary_positions(checkpoint, stack.decoder, layer) for layer in stack.layers[:2])
    assert sliding is not None
    assert full is not None
    size = stack.layers[0].head_size
    steps = torch.arange(0, size, 2) / size
    torch.testing.assert_close(torch.tensor(sliding.frequencies), 1e4**-steps)
    torch.testing.assert_close(torch.tensor(full.frequencies), 1e6**-steps / 8)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "mrope_section": [2, 3, 3]},
        {"rope_type": "default", "mrope_section": [2, 3, 4]},
        {"rope_type": "default", "mrope_section": "all"},
        {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": "large"},
        {"rope_type": "default", "mrope_section": [2, 3, 3], "partial_rotary_factor": 0},
    ],
)
def test_invalid_settings_of_rotations_are_refused(parameters: dict[str, Any], directory: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        positions_with(directory, rope_parameters=parameters)
    assert "--offset" in caught.value.remedy


def test_an_unknown_rotary_type_is_refused(directory: Path) -> None:
    with pytest.raises(UnsupportedForm, match="'spiral'"):
        positions_with(directory, rope_parameters={"rope_type": "spiral"})
