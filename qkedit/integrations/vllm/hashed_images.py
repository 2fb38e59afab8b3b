"""Send the hash of each image's pixels with its tensors to the workers, which get no images.

vLLM's processor of a model makes tensors of images in the process of the HTTP server. Ours adds the hash as one more
tensor of an image, which passes through vLLM's caches with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from qkedit.images import pixel_sha256

FIELD = "qkedit_sha256"
# Of something that is not a picture, such as an array.
_UNKNOWN = bytes(32)


def hash_in(image: Mapping[str, Any]) -> str:
    """Return `pixel_sha256` of an image from its tensors."""
    return bytes(image[FIELD].flatten().tolist()).hex()


def hashing(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory of processors that send hashes, from vLLM's factory of a model's processor."""

    def build(*arguments: Any, **settings: Any) -> Any:
        processor = factory(*arguments, **settings)
        # Set on the object: some factories choose between classes.
        processor._apply_hf_processor_main = _with_hashes(processor._apply_hf_processor_main)
        processor._get_mm_fields_config = _with_field(processor._get_mm_fields_config)
        return processor

    return build


def _with_hashes(usual: Callable[..., Any]) -> Callable[..., Any]:
    def processed(mm_items: Any, *arguments: Any, **settings: Any) -> Any:
        found = usual(mm_items, *arguments, **settings)
        if images := mm_items.get("image"):
            found[FIELD] = torch.stack([_hash_of(images.get(index)) for index in range(images.get_count())])
        return found

    return processed


def _with_field(usual: Callable[..., Any]) -> Callable[..., Any]:
    def fields(*arguments: Any, **settings: Any) -> Any:
        from vllm.multimodal.inputs import MultiModalFieldConfig

        return {**usual(*arguments, **settings), FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    return fields


def _hash_of(image: Any) -> torch.Tensor:
    content = bytes.fromhex(pixel_sha256(image)) if isinstance(image, Image.Image) else _UNKNOWN
    return torch.tensor(list(content), dtype=torch.uint8)
