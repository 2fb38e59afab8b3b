"""A prefill that brings images, as plug-ins see it before it runs; an engine's adapter knows how to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qkedit.plugins.core.grid import ImageGrids
from qkedit.plugins.core.modules import VLMModules


@dataclass(frozen=True)
class Span:
    """The prompt columns `first … end − 1` of every row, which run through the decoder together."""

    first: int
    end: int


class StopForward(Exception):
    """Raised inside a preview to end it once it has what it needs."""


@dataclass(frozen=True)
class Prefill(ABC):
    """A prefill before it runs.

    Attributes:
        parts: the model's parts.
        grids: where the image tokens stand.
        input_ids: `[batch, length]`.
        real: `[batch, length]` bool on the CPU, False for padding.
        inputs: what the image encoder was given, by name.
        arguments: the decoder's keyword arguments; `inputs_embeds`, `[batch, length, D]`, has the vision features.
    """

    parts: VLMModules
    grids: ImageGrids
    input_ids: Tensor
    real: Tensor
    inputs: Mapping[str, Any]
    arguments: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Prompt columns, padding included."""
        return self.grids.length

    @property
    def layer_types(self) -> list[str]:
        """Kind of each decoder layer."""
        return list(getattr(self.parts.text_config, "layer_types", None) or [])

    @abstractmethod
    def preview(self, last_layer: int, observe: Callable[[int, Tensor], None] | None = None) -> None:
        """Run the unedited decoder up to `last_layer` (included), without a cache and without gradients.

        Args:
            last_layer: where to stop.
            observe: called with every layer's index and the state after it, `[batch, length, D]`.

        Whatever watches the run may end it sooner by raising `StopForward`.
        """
