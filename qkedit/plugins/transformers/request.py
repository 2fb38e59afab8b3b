"""Recognise a prefill with images, find its images, and refuse prefills that plug-ins cannot handle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.transformers.prefill import Forward

# Attributes set on image features: the encoder's inputs, and the length of the prompt they were first used for.
_INPUTS = "_qkedit_inputs"
_LENGTH = "_qkedit_prompt_length"


class Request:
    """A recognised prefill with images; `done` once the plug-ins have begun to run it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.done = False


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, including those in `**kwargs`."""
    signature = inspect.signature(function)
    bound = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return bound


def remember_inputs(features: Any, inputs: Mapping[str, Any]) -> None:
    """Store the inputs of the image encoder with the image features.

    Only outputs of transformers can be passed on to a prefill (`mm_encoder_outputs`); plain tuples are left alone.
    """
    from transformers.utils import ModelOutput

    if isinstance(features, ModelOutput):
        object.__setattr__(features, _INPUTS, inputs)


def _encoded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    encoded = given.get("mm_encoder_outputs")
    return encoded if isinstance(encoded, Mapping) else {}


def has_images(given: Mapping[str, Any]) -> bool:
    """Return whether a call has images or videos, as pixels or as features."""
    encoded = _encoded(given)
    return any(
        value is not None
        for value in (
            given.get("pixel_values"),
            given.get("pixel_values_videos"),
            encoded.get("image"),
            encoded.get("video"),
        )
    )


def check_request(given: Mapping[str, Any]) -> None:
    """Refuse prefills that plug-ins cannot handle."""
    if given.get("pixel_values_videos") is not None or _encoded(given).get("video") is not None:
        raise UsageError(
            "plug-ins act on images, not on videos", where="pixel_values_videos", remedy="pass frames as images"
        )
    if given.get("input_ids") is None:
        raise UsageError(
            "image tokens cannot be found in embeddings", where="inputs_embeds", remedy="pass input_ids instead"
        )
    cache = given.get("past_key_values")
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise UsageError(
            "images are added to a conversation that is already in the cache",
            where="past_key_values",
            remedy="begin with an empty cache and the whole conversation, without prefill_chunk_size",
        )
    features, length = _encoded(given).get("image"), given["input_ids"].shape[1]
    if features is not None:
        # Without a cache, `generate` runs the whole text again for every token, with the same features.
        if length > getattr(features, _LENGTH, length):
            raise UsageError(
                "the answer so far would be mistaken for the question", where="use_cache", remedy="use a cache"
            )
        object.__setattr__(features, _LENGTH, length)


def image_inputs(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inputs of the image encoder, whether it runs now or ran before."""
    if given.get("pixel_values") is not None:
        return given
    inputs = getattr(_encoded(given)["image"], _INPUTS, None)
    if inputs is None:
        raise UsageError(
            "the image features were made before the plug-ins were attached, or have been split",
            where="mm_encoder_outputs",
            remedy="attach first and generate without prefill_chunk_size, or pass pixel_values",
        )
    return inputs


class _Merged(Exception):
    """Raised to leave the model once image features and prompt are merged."""

    def __init__(self, state: Tensor) -> None:
        self.state = state


def merged(parts: VLMModules, forward: Forward, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for a model that is its own decoder (Chameleon), with images merged in `inputs_embeds`."""

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Merged(args[0])

    handle = parts.layers[0].register_forward_pre_hook(stop)
    try:
        forward(**{**given, "past_key_values": None, "use_cache": False})
    except _Merged as merged:
        rest = {
            name: value
            for name, value in given.items()
            if name not in ("input_ids", "pixel_values", "mm_encoder_outputs", "inputs_embeds")
        }
        return {**rest, "inputs_embeds": merged.state}
    finally:
        handle.remove()
    raise QkeditError("its first layer did not run", where=type(parts.model).__name__)
