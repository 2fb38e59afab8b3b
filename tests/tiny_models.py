"""Build tiny random vision-language checkpoints with transformers, in the format of published ones.

Their configs are in `tiny_configs`. The weights are seeded and not trivial: projections are far from their initial
scale, and biases and norm gains are not neutral.
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

    # Phi-4-multimodal is registered as a language model only.
    is_causal = family in TEXT_MODELS or family == "phi4-multimodal"
    return AutoModelForCausalLM if is_causal else AutoModelForImageTextToText


def model(family: str, dtype: str = "bfloat16", settings: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Return the family's tiny model with seeded weights.

    Args:
        family: the name of a record in configs/families.
        dtype: the dtype of the weights.
        settings: a config to use instead of `config(family)`.
    """
    import torch

    torch.manual_seed(0)
    built = model_class(family).from_config(settings or config(family), dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(built.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                # The initial gain of a norm is the neutral one: 1, or 0 for (1 + w).
                parameter.add_((0.2 * noise).to(parameter.dtype))
            else:
                parameter.copy_(0.15 * noise)
    return built.eval()


def build(family: str, directory: Path, *, shards: int = 2, dtype: str = "bfloat16", published: bool = True) -> Path:
    """Save the family's tiny checkpoint into `directory` as at least `shards` shards, and return it.

    Args:
        family: a key of FAMILIES or TEXT_MODELS.
        directory: the directory for the checkpoint.
        shards: the minimum number of shards.
        dtype: the storage dtype of the weights.
        published: use the tensor names of published checkpoints, the default of transformers, instead of those of
            its modules.
    """
    built = model(family, dtype)
    size = sum(parameter.numel() * parameter.element_size() for parameter in built.parameters())
    limit = size if shards == 1 else size // shards
    built.save_pretrained(directory, max_shard_size=limit, save_original_format=published)
    return directory
