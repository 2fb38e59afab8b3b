"""Black out the salient part of a picture, as OA-VCD (arXiv 2602.11737) does.

A vision transformer that learned without labels (DINO) attends to objects. With a the attention of its class token in
the last layer to the patches, averaged over heads, the patches with the largest a are blacked out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkedit.errors import QkeditError
from qkedit.plugins.core.image_models import explained_failure, load_image_model

if TYPE_CHECKING:
    from PIL.Image import Image

_REMEDY = "give the directory or the hub id of a DINO transformer, such as facebook/dino-vits16"


@dataclass(frozen=True)
class SalientMasked:
    """A function from a picture to the same picture without its salient patches.

    Attributes:
        model: the vision transformer, loaded when this is made.
        share: the share of the patches that are blacked out, rounded to whole patches.

    Raises:
        QkeditError: the model cannot be loaded or has no class token.
    """

    model: str
    share: float

    def __post_init__(self) -> None:
        """Load the model."""
        _loaded(self.model)

    def __call__(self, picture: Image, question: str, device: torch.device) -> Image:
        """Return the second image, of the picture's size. Raises QkeditError if the model refuses the picture."""
        salience = class_attention(self.model, picture, device)
        order = salience.flatten().argsort(descending=True, stable=True)
        kept = torch.ones(salience.numel(), dtype=torch.bool)
        kept[order[: round(self.share * len(order))]] = False
        return with_black(picture, kept.view(salience.shape))


def class_attention(name: str, picture: Image, device: torch.device) -> Tensor:
    """Return the attention of the class token to each patch in the last layer, averaged over heads, `[rows, columns]`.

    The whole picture is resized to the size that the processor prepares, without a crop.

    Raises:
        QkeditError: the model does not take the picture.
    """
    processor, model = _loaded(name)
    model.to(device)
    with explained_failure("does not take a picture", name, _REMEDY):
        patch = _sides(model.config.patch_size)
        size = _size(processor, patch)
        pixels = processor(
            images=[picture],
            size=dict(zip(("height", "width"), size, strict=True)),
            do_resize=True,
            do_center_crop=False,
            return_tensors="pt",
        )["pixel_values"].to(device)
        settings = {"interpolate_pos_encoding": True} if model.config.model_type in _ONE_SIZE else {}
        with torch.no_grad():
            attention = model(pixel_values=pixels, output_attentions=True, **settings).attentions[-1]
        rows, columns = (side // length for side, length in zip(pixels.shape[-2:], patch, strict=True))
        before = 1 + getattr(model.config, "num_register_tokens", 0)
        return attention[0, :, 0, before : before + rows * columns].mean(dim=0).float().cpu().view(rows, columns)


def with_black(picture: Image, kept: Tensor) -> Image:
    """Return a picture that is black where `kept`, `[rows, columns]` over the whole picture, is false."""
    from PIL import Image

    # The cell of each pixel's centre, in whole numbers, so that no rounding decides.
    rows, columns = (
        (2 * torch.arange(side) + 1) * cells // (2 * side)
        for side, cells in zip((picture.height, picture.width), kept.shape, strict=True)
    )
    mask = Image.fromarray(kept[rows][:, columns].to(torch.uint8).mul(255).numpy())
    return Image.composite(picture, Image.new("RGB", picture.size), mask)


# Their position embeddings fit one image size unless they are told to interpolate; later models always do.
_ONE_SIZE = ("vit", "deit", "ijepa")


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    processor, model = load_image_model(
        AutoImageProcessor,
        AutoModel,
        name,
        "a vision transformer with a class token",
        _REMEDY,
        fits=lambda config: hasattr(config, "patch_size") and hasattr(config, "num_attention_heads"),
        spare="pooler.",
        attn_implementation="eager",
    )
    if not any(part.endswith("cls_token") for part, _ in model.named_parameters()):
        raise QkeditError("is not a vision transformer with a class token", where=name, remedy=_REMEDY)
    return processor, model


def _size(processor: Any, patch: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width to resize pictures to: what the processor makes, in whole patches."""
    own = getattr(processor, "crop_size", None) or processor.size
    sides = (own.get("height") or own.get("shortest_edge"), own.get("width") or own.get("shortest_edge"))
    height, width = (max(1, side // length) * length for side, length in zip(sides, patch, strict=True))
    return height, width


def _sides(patch: Any) -> tuple[int, int]:
    height, width = patch if isinstance(patch, list | tuple) else (patch, patch)
    return height, width
