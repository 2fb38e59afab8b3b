"""Build tiny random vision-language checkpoints with transformers, in the form of published ones.

Their configs are in `tiny_configs`. The weights are seeded and non-trivial: projections far from their initial
scale, biases and norm gains not neutral.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.tiny_configs import FAMILIES, TEXT_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def config(family: str) -> PreTrainedConfig:
    """Return the config of the family's tiny model."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**FAMILIES, **TEXT_MODELS}[family])


def model_class(family: str) -> Any:
    """Return the automatic class that builds and loads the family's models."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    # Phi-4-multimodal is registered as a language model alone.
    is_causal = family in TEXT_MODELS or family == "phi4-multimodal"
    return AutoModelForCausalLM if is_causal else AutoModelForImageTextToText


def model(family: str, dtype: str = "bfloat16", settings: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Return the family's tiny model with seeded weights.

    Args:
        family: the name of a record in configs/families.
        dtype: of the weights.
        settings: a config other than `config(family)`.
    """
    import torch

    torch.manual_seed(0)
    built = model_class(family).from_config(settings or config(family), dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(built.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                # A norm's own initial value is its neutral one, 1 or 0 for (1 + w).
                parameter.add_((0.2 * noise).to(parameter.dtype))
            else:
                parameter.copy_(0.15 * noise)
    return built.eval()


def build(family: str, directory: Path, *, shards: int = 2, dtype: str = "bfloat16", published: bool = True) -> Path:
    """Save the family's tiny checkpoint into `directory` as at least `shards` shards, and return it.

    Args:
        family: a key of FAMILIES or TEXT_MODELS.
        directory: where to write.
        shards: how many shards at least.
        dtype: storage dtype of the weights.
        published: tensor names as in published checkpoints, which is transformers' own default, or as its modules
            have them.
    """
    built = model(family, dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in built.parameters())
    limit = size if shards == 1 else size // shards
    built.save_pretrained(directory, max_shard_size=limit, save_original_format=published)
    return directory
