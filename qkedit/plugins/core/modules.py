"""The modules of a loaded vision-language model, for plug-ins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


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
