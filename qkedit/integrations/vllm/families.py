"""The families whose plug-ins run on vLLM, and the names under which their classes are registered there.

A family is listed only if log probabilities with each plug-in have been compared with transformers' on vLLM. Our class
has a name of its own, so that a server that lost the plug-in cannot start, instead of serving the model without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.errors import UnsupportedForm

PREFIX = "Qkedit"

# vLLM's class by `model_type`.
ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}


def our_architecture(config: Mapping[str, Any], where: str) -> str:
    """Return the name of our class for a model.

    Args:
        config: the content of its `config.json`.
        where: the model's name, for messages.

    Raises:
        UnsupportedForm: plug-ins have not been shown to be right for its family on vLLM.
    """
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise UnsupportedForm(
            f"plug-ins on vLLM have not been compared with transformers for model type {family}",
            where=where,
            remedy="serve it with --engine transformers, or without plug-ins (an edited checkpoint needs none)",
        )
    return PREFIX + ARCHITECTURES[family]


def image_inputs(family: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return vLLM's inputs of single images as the model's processor returns them for all images together.

    Args:
        family: the `model_type`.
        items: for each image its tensors by name.
    """
    import torch

    if family == "qwen2_vl":
        return {
            "pixel_values": torch.cat([item["pixel_values"] for item in items]),
            "image_grid_thw": torch.stack([item["image_grid_thw"].flatten() for item in items]),
        }
    pixels = [item["pixel_values"] for item in items]
    return {"pixel_values": torch.stack([own[0] if own.ndim == 4 else own for own in pixels])}
