"""DeCo (arXiv 2410.11779): add the logits of the earlier layer that is most confident in a plausible token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import Generation, LikeliestChanges
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest, check_weights
from qkedit.plugins.core.random_controls import check_control, control_generator, permuted_changes
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.early_exit.layer_logits import LayerChoice, LayerLogits
from qkedit.selection import check_layers, select_layers

# Layers 20 to 28 of 32, as shares.
_FIRST, _LAST = 0.625, 0.9


@dataclass(frozen=True, kw_only=True)
class DeCoReport(PluginReport):
    """The report of DeCo on one answer.

    Attributes:
        steps: the number of decoding steps.
        chosen: by layer, the number of steps in which it was chosen, over all prompts.
        likeliest_changed: the share of steps, over all prompts, whose likeliest token differs from the model's.
    """

    steps: int
    chosen: dict[int, int]
    likeliest_changed: float


@dataclass(frozen=True)
class DeCo:
    """Settings of DeCo.

    Attributes:
        alpha: α, the weight of the earlier layer's logits, which is multiplied by that layer's confidence.
        layers: the candidate layers, such as 20-28; None for 0.625 to 0.9 of the depth.
        top_p, top_k: the plausible tokens: the likeliest that make up `top_p` of the probability, `top_k` at most.
        control: the seed of a matched random control, which gives the changes of logits to random tokens among the
            plausible ones; None for the method itself.
    """

    name: ClassVar[str] = "deco"

    alpha: float = 0.6
    layers: str | None = None
    top_p: float = 0.9
    top_k: int = 20
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_control(self.control, self.name)
        check_layers(self.layers, "deco layers")
        check_weights(self.name, alpha=self.alpha)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"{self.top_p} is not a share", where="deco top_p", remedy="give a number such as 0.9")
        if self.top_k < 1:
            raise UsageError(f"{self.top_k} is not a positive number", where="deco top_k", remedy="give 1 or more")
        check_largest(self.name, top_k=self.top_k)

    def bind(self, modules: VLMModules) -> BoundDeCo:
        """Check the settings against a model. Raises UsageError for layers that it does not have."""
        count = len(modules.layers)
        last = min(count - 2, math.floor(_LAST * count))
        chosen = self.layers or f"{min(last, math.floor(_FIRST * count))}-{last}"
        LayerLogits(modules, self.name)
        layers = tuple(select_layers(chosen, count, where="deco layers"))
        return BoundDeCo(self, modules, layers, control_generator(self.control))


@dataclass(frozen=True)
class BoundDeCo:
    """DeCo on one model."""

    settings: DeCo
    modules: VLMModules
    layers: tuple[int, ...]
    control: torch.Generator | None

    def start_decoding(self, generation: Generation) -> LayerCorrection:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported, such as beam search.

        Corrected logits of different beams are not on the same scale.
        """
        refuse_settings(generation, (*OF_EVERY_STEP, "num_beams"), DeCo.name)
        return LayerCorrection(self)


class LayerCorrection(LayerChoice):
    """The correction for one request."""

    def __init__(self, plugin: BoundDeCo) -> None:
        super().__init__(plugin.modules, plugin.layers, DeCo.name)
        self._plugin = plugin
        self._changes = LikeliestChanges()

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return `l + α p* l_layer` on the plausible tokens, −∞ elsewhere, row by row."""
        settings = self._plugin.settings
        early = self.layer_logits.of(self._plugin.layers, logits).to(logits.device)  # [layers, batch, vocabulary]
        plausible = plausible_tokens(logits, settings.top_p, settings.top_k)
        certainty = early.softmax(dim=-1).masked_fill(~plausible, 0).amax(dim=-1)  # [layers, batch]
        surest, choice = certainty.max(dim=0)
        rows = torch.arange(len(logits), device=logits.device)
        edited = logits + settings.alpha * surest[:, None] * early[choice, rows]
        edited = permuted_changes(edited.masked_fill(~plausible, -torch.inf), logits, self._plugin.control)
        self.count(choice)
        self._changes.count(edited, logits)
        return edited

    def report(self) -> DeCoReport:
        """Return the report."""
        return DeCoReport(steps=self.steps, chosen=self.chosen(), likeliest_changed=self._changes.share)


def plausible_tokens(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Return the mask of plausible tokens, `[batch, vocabulary]` bool.

    They are the likeliest tokens that together make up `top_p` of the probability, and at most `top_k` of them.
    """
    probabilities, tokens = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # the probability of the likelier ones
    kept = (before < top_p) & (torch.arange(logits.shape[-1], device=logits.device) < top_k)
    return torch.zeros_like(kept).scatter(1, tokens, kept)
