"""A loaded vision-language model as plug-ins see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class VLMModules:
    """A vision-language model as plug-ins see it.

    Attributes:
        model: as it was given, whose `generate` is called.
        base: the part that turns images into features and merges them into the prompt.
        decoder: the language model without its head; the same module as `base` in Chameleon.
        layers: the decoder's layers.
        attention_layers: indices of those that compute attention (the others are linear attention or convolutions).
    """

    model: nn.Module
    base: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    attention_layers: tuple[int, ...]

    @property
    def config(self) -> Any:
        """Config of the whole model."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """Config of the decoder."""
        return self.decoder.config
