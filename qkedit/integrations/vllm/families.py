"""The families whose plug-ins run on vLLM, and the names under which their classes are registered there.

A family is listed only if its log probabilities on vLLM have been compared with those on transformers, with each
plug-in. Our class has its own name, so that a server without the plug-in cannot start; with vLLM's name it would serve
the unedited model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.errors import UnsupportedForm

PREFIX = "Qkedit"

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
}
"""The name of vLLM's class, by `model_type`."""


def our_architecture(config: Mapping[str, Any], where: str) -> str:
    """Return the name of our class for a model's family.

    Args:
        config: the content of the model's `config.json`.
        where: the model's name, for messages.

    Raises:
        UnsupportedForm: plug-ins on vLLM have not been compared with transformers for its family.
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
    """Join the inputs that vLLM has for each image into those that the model's processor returns for all images.

    Args:
        family: the `model_type`.
        items: the tensors of each image, by name.
    """
    import torch

    pixels = [item["pixel_values"] for item in items]
    match family:
        case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl":
            sizes = torch.stack([item["image_grid_thw"].flatten() for item in items])
            return {"pixel_values": torch.cat(pixels), "image_grid_thw": sizes}
        case "llava_next" | "llava_onevision":
            sizes = torch.stack([torch.as_tensor(item["image_sizes"]).flatten() for item in items])
            return {"pixel_values": torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True), "image_sizes": sizes}
        case "internvl":
            return {"pixel_values": torch.cat(pixels)}
        case "idefics3":
            return {"pixel_values": torch.cat(pixels)[None]}
        case "mistral3":
            sizes = torch.tensor([own.shape[-2:] for own in pixels])
            height, width = sizes.amax(0).tolist()
            padded = [
                torch.nn.functional.pad(own, (0, width - own.shape[-1], 0, height - own.shape[-2])) for own in pixels
            ]
            return {"pixel_values": torch.stack(padded), "image_sizes": sizes}
    return {"pixel_values": torch.stack([own[0] if own.ndim == 4 else own for own in pixels])}
