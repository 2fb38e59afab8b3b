"""Keep the part of a picture that matches a question, as AGLA (arXiv 2406.12718) does.

With s the score of BLIP's image-text matching head and A the cross-attention of one layer of its text encoder,
`[heads, tokens, patches]`, the map of the question is GradCAM's

    G = mean over the question's tokens of  mean over heads of  A · max(0, ∂s / ∂A)

scaled to the model's image size, blurred with σ = 0.02 of its longer side, and stretched to 0 … 1. The share
1 − c / 2 of the pixels is kept, those where the map is largest, where c is the cosine between the model's features of
image and question: the better they match, the less is needed. The rest is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.contrast.salience import with_black
from qkedit.plugins.core.image_models import explained_failure, load_image_model

if TYPE_CHECKING:
    from PIL.Image import Image

_REMEDY = "give the directory or the hub id of a BLIP model for matching, such as Salesforce/blip-itm-base-coco"
# What BLIP's captions in training did not have, and their length in words.
# LAVIS's BlipCaptionProcessor, which AGLA's code uses, prepares texts so.
_REMOVED = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_WORDS = 50
# In shares of the longer side.
_BLUR = 0.02
_LEAST_REMOVED = 1e-5


@dataclass(frozen=True)
class MatchingKept:
    """A function from a picture and a question to the picture with what matches the question.

    Attributes:
        model: the BLIP model, loaded when this is made.
        layer: the layer of its text encoder, from 0; not the last one.

    Raises:
        QkeditError: the model cannot be loaded.
        UsageError: it has no such layer.
    """

    model: str
    layer: int

    def __post_init__(self) -> None:
        """Load the model."""
        # In the last layer, the score depends on the row of [CLS] alone.
        last = _loaded(self.model)[1].config.text_config.num_hidden_layers - 2
        if self.layer > last:
            raise UsageError(
                f"{self.layer} is not among the layers 0 to {last} of {self.model} whose words decide on a match",
                where="agla layer",
                remedy="give one of them",
            )

    def __call__(self, picture: Image, question: str, device: torch.device) -> Image:
        """Return the second image, of the picture's size.

        Raises:
            UsageError: the question is unknown, or has no words.
            QkeditError: the model does not take the picture.
        """
        words = " ".join(question.lower().translate(_REMOVED).split()[:_WORDS])
        if not words:
            raise _no_words()
        return with_black(picture, matching_part(self.model, self.layer, picture, words, device))


@torch.inference_mode(False)  # tensors made in that mode have no gradients
def matching_part(name: str, layer: int, picture: Image, words: str, device: torch.device) -> Tensor:
    """Return which pixels of the model's image size are kept for a question, `[height, width]`.

    Raises:
        UsageError: the model's tokenizer finds no words in the question.
        QkeditError: the model does not take the picture or the question.
    """
    processor, model = _loaded(name)
    model.to(device)
    limit = model.config.text_config.max_position_embeddings
    with explained_failure("does not take a picture and a question", name, _REMEDY):
        inputs = processor(images=[picture], text=[words], truncation=True, max_length=limit, return_tensors="pt").to(
            device
        )
        pixels = inputs["pixel_values"]
        text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        if text["input_ids"].shape[1] <= 2:  # [CLS] and [SEP]
            raise _no_words()
        with torch.enable_grad():
            states, attention, matching = _matched(model, layer, pixels, text)
            (gradient,) = torch.autograd.grad(matching, attention)
        with torch.no_grad():
            alone = model.text_encoder(**text).last_hidden_state[:, 0]
            cosine = cosine_similarity(model.vision_proj(states[:, 0]), model.text_proj(alone)).item()
        height, width = (side // model.config.vision_config.patch_size for side in pixels.shape[-2:])
        weighted = (attention * gradient.clamp(min=0))[0, :, 1:-1, 1:].detach()  # without [CLS], [SEP] and class token
        found = weighted.mean(dim=(0, 1)).view(height, width).cpu()
        return largest(smooth(found, tuple(pixels.shape[-2:])), min(1 - cosine / 2, 1 - _LEAST_REMOVED))


def smooth(found: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return a map `[rows, columns]` in another size, blurred, from 0 to 1."""
    large = interpolate(_stretched(found)[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
    sigma = _BLUR * max(size)
    radius = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return _stretched(_blurred(_blurred(large, weights / weights.sum()).T, weights / weights.sum()).T)


def largest(values: Tensor, share: float) -> Tensor:
    """Return the mask of this share of the values, the largest ones, with all that equal the smallest of them."""
    ordered = values.flatten().sort(descending=True).values
    return values >= ordered[int(len(ordered) * share)]


def _matched(model: Any, layer: int, pixels: Tensor, text: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states of the image, the cross-attention of the layer and the score of a match."""
    states = model.vision_model(pixel_values=pixels).last_hidden_state
    read = model.text_encoder(
        **text,
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
        output_attentions=True,
    )
    return states, read.cross_attentions[layer], model.itm_head(read.last_hidden_state[:, 0])[:, 1].sum()


def _blurred(values: Tensor, weights: Tensor) -> Tensor:
    """Convolve the rows with weights, mirrored at both ends."""
    radius = len(weights) // 2
    wide = torch.cat([values[:, :radius].flip(1), values, values[:, values.shape[1] - radius :].flip(1)], dim=1)
    return wide.unfold(1, len(weights), 1) @ weights


def _stretched(values: Tensor) -> Tensor:
    """Scale values to 0 … 1; all equal, they become 0."""
    values = values - values.min()
    most = values.max()
    return values / most if most > 0 else values


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    with torch.inference_mode(False):  # weights made in that mode have no gradients
        processor, model = load_image_model(
            AutoProcessor,
            BlipForImageTextRetrieval,
            name,
            "a BLIP model for image-text matching",
            _REMEDY,
            fits=lambda config: config.model_type == "blip",
            attn_implementation="eager",
        )
    # Without a tokenizer's files, transformers makes one without words.
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise QkeditError(
            "its tokenizer's files are missing, so no word of a question is known",
            where=name,
            remedy="put tokenizer.json from the model's page next to its weights",
        )
    return processor, model


def _no_words() -> UsageError:
    return UsageError(
        "the request comes without its question, or the question has no words",
        where="agla",
        remedy="ask one with qkedit.generate, or give remember_pictures the questions (docs/rivals.md)",
    )
