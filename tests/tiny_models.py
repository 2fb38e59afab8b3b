"""Build tiny random vision-language checkpoints with transformers, saved as it saves real ones.

Hidden size 64, 4 query heads on 2 key heads (LLaVA: 4 on 4), 4 layers, several shards. The weights are seeded and
non-trivial: projections far from their initial scale, biases and norm gains not at their neutral values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 32,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "vision_use_head": False,
}
MROPE = {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def _qwen2_vl() -> PreTrainedConfig:
    from transformers import Qwen2VLConfig

    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    return Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )


def _qwen2_5_vl() -> PreTrainedConfig:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )


def _llava() -> PreTrainedConfig:
    from transformers import LlavaConfig

    return LlavaConfig(
        text_config={**TEXT, "model_type": "llama", "num_key_value_heads": 4},
        vision_config=CLIP,
        image_token_index=5,
        image_seq_length=4,
    )


def _llava_onevision() -> PreTrainedConfig:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=SIGLIP,
        image_token_index=5,
        video_token_index=6,
        image_grid_pinpoints=[[16, 16], [16, 32]],
    )


def _internvl() -> PreTrainedConfig:
    from transformers import InternVLConfig

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [16, 16],
        "patch_size": [4, 4],
    }
    return InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision, image_token_id=5, image_seq_length=4
    )


def _mllama() -> PreTrainedConfig:
    from transformers import MllamaConfig

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 1,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [1],
        "supported_aspect_ratios": [[1, 1]],
    }
    return MllamaConfig(text_config={**TEXT, "cross_attention_layers": [1]}, vision_config=vision, image_token_index=5)


def _idefics3() -> PreTrainedConfig:
    from transformers import Idefics3Config

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    return Idefics3Config(
        text_config={**TEXT, "model_type": "llama"}, vision_config=vision, image_token_id=5, scale_factor=2
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
    "llava": _llava,
    "llava-onevision": _llava_onevision,
    "internvl": _internvl,
    "mllama": _mllama,
    "idefics3": _idefics3,
}


def model(family: str, dtype: str = "bfloat16") -> PreTrainedModel:
    """Return the family's tiny model with seeded weights. `family` is the name of a record in configs/families."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    built = AutoModelForImageTextToText.from_config(CONFIGS[family](), dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(built.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * 0.15)
            elif "norm" in name and name.endswith("weight"):
                # Neutral values stay near where the family's norm expects them, (1 + w) or w.
                parameter.add_(0.2 * noise.to(parameter.dtype))
            else:
                parameter.copy_(noise * 0.1)
    return built.eval()


def build(family: str, directory: Path, *, shards: int = 2, dtype: str = "bfloat16") -> Path:
    """Save the family's tiny checkpoint into `directory` as at least `shards` shards, and return it."""
    built = model(family, dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in built.parameters())
    built.save_pretrained(directory, max_shard_size=size if shards == 1 else size // shards)
    return directory
