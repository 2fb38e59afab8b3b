"""Undo the rotation of cached keys by position, and apply it again.

The model's own `apply_rotary_pos_emb` does both: with a negated sine it undoes the rotation. So this module does not
depend on which pairs of dimensions a family rotates.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.modules import VLMModules


@dataclass(frozen=True)
class Rotation:
    """The rotation of the tokens of some grids in one layer.

    Attributes:
        apply: the family's function, `(q, k, cos, sin, unsqueeze_dim) → (q, k)`.
        cosine, sine: cosine and sine of each token's angles, float32 `[G, N, rotated dimensions]`.
    """

    apply: Callable[..., tuple[Tensor, Tensor]]
    cosine: Tensor
    sine: Tensor

    def forth(self, states: Tensor) -> Tensor:
        """Rotate float32 `[G, N, H, d]` as the layer does."""
        return self.apply(states, states, self.cosine, self.sine, unsqueeze_dim=2)[1]

    def back(self, states: Tensor) -> Tensor:
        """Undo `forth`."""
        turned = self.apply(states, states, self.cosine, -self.sine, unsqueeze_dim=2)[1]
        # Some models also scale, and rounded cosines and sines are not exactly on the unit circle.
        scale = (self.cosine.square() + self.sine.square())[:, :, None]
        rotated = scale.shape[-1]
        return torch.cat([turned[..., :rotated] / scale, turned[..., rotated:]], dim=-1)


class SeenRotations:
    """The angles of a prompt's columns, collected layer by layer while its parts run through the decoder."""

    def __init__(self) -> None:
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def see(self, layer: int, position_embeddings: tuple[Tensor, Tensor]) -> None:
        """Record a layer's cosines and sines for the next columns, `[1 or B, columns, rotated]`."""
        self._seen.setdefault(layer, []).append(position_embeddings)

    def of(self, layer: int, attention: Any, rows: Tensor, columns: Tensor) -> Rotation:
        """Return the rotation of chosen tokens in one layer.

        Args:
            layer: the index of the layer.
            attention: the attention module of the layer.
            rows: the batch row of each grid, `[G]`.
            columns: the prompt column of each token, `[G, N]`.

        Raises:
            UnsupportedForm: the family does not use the usual function.
        """
        cosines, sines = zip(*self._seen[layer], strict=True)

        def gathered(pieces: tuple[Tensor, ...]) -> Tensor:
            table = torch.cat(pieces, dim=1)
            own_rows = rows if table.shape[0] > 1 else torch.zeros_like(rows)
            chosen = table[own_rows[:, None].to(table.device), columns.to(table.device)]
            return chosen.to(rows.device, torch.float32)

        return Rotation(rotary_function(attention), gathered(cosines), gathered(sines))


class LayerRotations:
    """The rotations of a model's layers; see `KeyRotations`.

    Args:
        parts: the model's modules.
        layers: the layers.

    Raises:
        UnsupportedForm: a layer does not use the usual function.
    """

    def __init__(self, parts: VLMModules, layers: Iterable[int]) -> None:
        self._parts = parts
        self._seen = SeenRotations()
        self.entered_layers = frozenset(layers)
        for layer in self.entered_layers:
            rotary_function(parts.layers[layer].self_attn)  # refuse before anything runs

    def see(self, layer: int, arguments: Mapping[str, Any]) -> None:
        """Record the angles by which a layer rotates the next columns."""
        self._seen.see(layer, arguments["position_embeddings"])

    def of(self, layer: int, rows: Tensor, columns: Tensor) -> Rotation:
        """Return the rotation of chosen tokens in one layer."""
        return self._seen.of(layer, self._parts.layers[layer].self_attn, rows, columns)


def rotary_function(attention: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the function by which an attention module rotates queries and keys.

    Raises:
        UnsupportedForm: its family does not have one of the usual form.
    """
    function = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if function is None:
        raise UnsupportedForm(
            "it is unknown how it rotates keys by position",
            where=type(attention).__name__,
            remedy="mix the keys in the form of the cache (space=cache)",
        )
    rotary: Callable[..., tuple[Tensor, Tensor]] = function
    return rotary
