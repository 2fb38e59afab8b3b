"""The modules of a loaded vision-language model, for plug-ins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from qkedit.errors import UsageError


@dataclass(frozen=True)
class VLMModules:
    """The modules of a vision-language model that plug-ins use.

    Attributes:
        model: the whole model, whose `generate` is called.
        base: the part that encodes images and merges their features into the prompt.
        decoder: the language model without its head; the same module as `base` in Chameleon.
        layers: the layers of the decoder.
        attention_layers: the indices of layers with attention (others are linear attention or convolutions).
    """

    model: nn.Module
    base: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    attention_layers: tuple[int, ...]

    @property
    def config(self) -> Any:
        """The config of the whole model."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """The config of the decoder."""
        return self.decoder.config


def model_in(given: Any) -> Any:
    """Return the model of transformers that a caller gives: itself, or within what `qkedit.load` returns.

    Raises:
        UsageError: it is neither.
    """
    model = given.model if hasattr(given, "model") and hasattr(given, "processor") else given
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UsageError(
            f"{type(given).__name__} is not a model of transformers",
            where="model",
            remedy="pass the model that AutoModelForImageTextToText.from_pretrained or qkedit.load returns",
        )
    return model
