"""The logits that the output head computes from the states of earlier layers, and edits that choose such a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.decoding import DecodingEdit
from qkedit.plugins.core.modules import VLMModules

# The tolerance between the head's own logits and ours, relative to the largest: 16-bit arithmetic in another order.
_TOLERANCE = 2e-2


class LayerLogits:
    """The states after some layers in one forward pass, and their logits.

    Args:
        modules: the model's modules.
        name: the plug-in's name, for messages.

    Raises:
        UnsupportedForm: the model's final norm or output head is not in a known place.
    """

    def __init__(self, modules: VLMModules, name: str) -> None:
        model: Any = modules.model
        self._norm: Any = getattr(modules.decoder, "norm", None)
        self._head: Any = model.get_output_embeddings()
        self._name = name
        self._last = len(modules.layers) - 1
        self._states: dict[int, Tensor] = {}
        self._checked = False
        if self._norm is None or self._head is None:
            raise UnsupportedForm(
                "its final norm or its output head is not in a known place",
                where=name,
                remedy="use another method",
            )

    def see(self, layer: int, hidden: Tensor) -> None:
        """Store the state of the last token after a layer, `[batch, D]`."""
        self._states[layer] = hidden

    def of(self, layers: tuple[int, ...], logits: Tensor, *, normed: bool = True) -> Tensor:
        """Return the logits after some layers, `[layers, batch, vocabulary]` float32.

        Args:
            layers: layers whose states were stored; that of the last layer must be stored too.
            logits: the model's own logits, `[batch, vocabulary]`.
            normed: whether the final norm is applied before the head.

        Raises:
            UnsupportedForm: the head of the last layer's state does not give the model's own logits.
        """
        if not self._checked:
            self._check(logits)
            self._checked = True
        return torch.stack([self.head(self._states[layer], normed=normed) for layer in layers])

    @torch.no_grad()
    def head(self, state: Tensor, *, normed: bool) -> Tensor:
        """Return the logits of states `[batch, D]`, `[batch, vocabulary]` float32; `normed` as in `of`."""
        states = self._norm(state) if normed else state
        logits: Tensor = self._head(states.to(self._head.weight.device))
        return logits.float()

    def _check(self, logits: Tensor) -> None:
        own = self.head(self._states[self._last], normed=True).to(logits.device)
        if (own - logits).abs().max() > _TOLERANCE * logits.abs().max():
            raise UnsupportedForm(
                "the logits are not those of its head: the model caps or scales them",
                where=self._name,
                remedy="use another method",
            )


class LayerChoice(DecodingEdit):
    """The base class of edits of logits by an earlier layer, which each row chooses in each step of one request.

    Args:
        modules: the model's modules.
        layers: the layers to choose from.
        name: the plug-in's name, for messages.
    """

    needs_own_logits = True

    def __init__(self, modules: VLMModules, layers: tuple[int, ...], name: str) -> None:
        self.layer_logits = LayerLogits(modules, name)
        self.observed_layers = frozenset((*layers, len(modules.layers) - 1))
        self.steps = 0
        self._layers = layers
        self._chosen: dict[int, int] = dict.fromkeys(layers, 0)

    def observe_layer(self, layer: int, hidden: Tensor) -> None:
        """Keep the state."""
        self.layer_logits.see(layer, hidden)

    def count(self, choice: Tensor) -> None:
        """Count one step, in which the rows chose the layers of these indices, `[batch]`."""
        self.steps += 1
        for index in choice.tolist():
            self._chosen[self._layers[index]] += 1

    def chosen(self) -> dict[int, int]:
        """Return how often each layer was chosen, without those that never were."""
        return {layer: count for layer, count in self._chosen.items() if count}
