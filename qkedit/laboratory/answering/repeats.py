"""Leave out repeated work that does not change a result: equal pictures of a batch, and copies of keys and values.

A decoder with grouped queries has fewer key heads than query heads. For a masked prefill, transformers copies the keys
and values of each key head for all its query heads; the CPU kernel of PyTorch computes the same from the originals.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Causal decoders whose prompts can begin with the picture.
CAUSAL_MODELS = ("llava", "vipllava")
# Vision towers without any operation between the pictures of a batch: equal pictures have equal features, up to the
# rounding of another batch size.
SEPARATE_PICTURES = ("clip_vision_model", "siglip_vision_model")
# With "1", transformers gives PyTorch the grouped heads as they are; it is read at every call.
GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def grouped_heads_kept(model: Any) -> Iterator[None]:
    """During a block, do not copy keys and values on a CPU; other devices have no kernel for it with a mask.

    Args:
        model: a model of transformers.
    """
    before = os.environ.get(GROUPED_HEADS)
    if model.device.type != "cpu" or before is not None:
        yield
        return
    os.environ[GROUPED_HEADS] = "1"
    try:
        yield
    finally:
        del os.environ[GROUPED_HEADS]


@contextmanager
def equal_pictures_once(model: Any) -> Iterator[None]:
    """During a block, run the vision tower on the distinct pictures of each batch; other families run as usual.

    Args:
        model: a model of transformers.
    """
    config = model.config
    vision = getattr(config, "vision_config", None)
    if config.model_type not in CAUSAL_MODELS or getattr(vision, "model_type", None) not in SEPARATE_PICTURES:
        yield
        return
    tower = model.model.vision_tower
    before, original = vars(tower).get("forward"), tower.forward

    def forward(pixel_values: Any, *arguments: Any, **named: Any) -> Any:
        firsts, places = _distinct(pixel_values)
        if len(firsts) == len(places):
            return original(pixel_values, *arguments, **named)
        output = original(pixel_values[firsts], *arguments, **named)
        at = torch.tensor(places, device=pixel_values.device)
        return type(output)(**{name: _repeated(value, at) for name, value in output.items()})

    tower.forward = forward
    try:
        yield
    finally:
        if before is None:
            del tower.forward
        else:
            tower.forward = before


def _distinct(pictures: Tensor) -> tuple[list[int], list[int]]:
    """Return the row of each distinct picture's first copy, and for each row the place of its picture among them.

    Pictures are compared by their bytes, so that one with noise of its own is distinct.
    """
    number: dict[bytes, int] = {}
    firsts: list[int] = []
    places: list[int] = []
    for row, picture in enumerate(pictures):
        key = picture.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
        if key not in number:
            number[key] = len(firsts)
            firsts.append(row)
        places.append(number[key])
    return firsts, places


def _repeated(value: Any, at: Tensor) -> Any:
    """Return a tensor of pictures, or each of a tuple of them, with a row for every picture of the batch."""
    if isinstance(value, tuple):
        return tuple(_repeated(one, at) for one in value)
    return value.index_select(0, at) if isinstance(value, Tensor) else value
