"""The interface between plug-ins and a prefill with images, which an adapter for the engine runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qkedit.plugins.core.grid import ImageGrids
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.recorded_attention import AttentionRecorder


@dataclass(frozen=True)
class Span:
    """The prompt columns `first … end − 1` of every row, which pass through the decoder together."""

    first: int
    end: int


class Rotation(Protocol):
    """The rotation by position of the keys of chosen tokens, `[G, N, H, d]` in float32."""

    def back(self, states: Tensor) -> Tensor:
        """Return keys of the cache as they were before their rotation."""
        ...

    def forth(self, states: Tensor) -> Tensor:
        """Rotate keys as their layer does."""
        ...


class KeyRotations(Protocol):
    """The rotations of a prompt's keys by layer, collected while it runs.

    Attributes:
        entered_layers: see `RequestEdit`; the layers whose arguments `see` needs.
    """

    entered_layers: frozenset[int]

    def see(self, layer: int, arguments: Mapping[str, Any]) -> None:
        """Read a layer's keyword arguments for the next columns."""
        ...

    def of(self, layer: int, rows: Tensor, columns: Tensor) -> Rotation:
        """Return the rotation of the tokens of grids in one layer, by row `[G]` and prompt columns `[G, N]`."""
        ...


class StopForward(Exception):
    """Raised inside a preview to end it early."""


@dataclass(frozen=True)
class Prefill(ABC):
    """A prefill before it runs.

    Attributes:
        parts: the model's modules.
        grids: the positions of the image tokens.
        input_ids: `[batch, length]`.
        real: `[batch, length]` bool on the CPU, False for padding.
        inputs: the inputs of the image encoder, by name.
        arguments: the decoder's keyword arguments; `inputs_embeds`, `[batch, length, D]`, includes vision features.
    """

    parts: VLMModules
    grids: ImageGrids
    input_ids: Tensor
    real: Tensor
    inputs: Mapping[str, Any]
    arguments: Mapping[str, Any]

    @property
    def length(self) -> int:
        """The number of prompt columns, including padding."""
        return self.grids.length

    @property
    def layer_types(self) -> list[str]:
        """The kind of each decoder layer."""
        return list(getattr(self.parts.text_config, "layer_types", None) or [])

    def image_hashes(self) -> Sequence[str] | None:
        """Return `qkedit.images.pixel_sha256` of every image, in order; None if the images are not known here."""
        return None

    @abstractmethod
    def key_rotations(self, layers: Iterable[int]) -> KeyRotations:
        """Return what undoes the rotation of keys in layers. Raises UnsupportedForm if that is not known."""

    @abstractmethod
    def preview(self, last_layer: int, observe: Callable[[int, Tensor], None] | None = None) -> None:
        """Run the unedited decoder up to and including `last_layer`, without a cache and without gradients.

        Args:
            last_layer: the layer to stop after.
            observe: called with the index of every layer and the state after it, `[batch, length, D]`.

        An observer may end the run earlier by raising `StopForward`.
        """

    @abstractmethod
    def recording(self, recorder: AttentionRecorder) -> AbstractContextManager[None]:
        """Record the attention of a preview into `recorder`, as long as the context is open."""
