"""DoLa (Decoding by Contrasting Layers, arXiv 2309.03883): contrast the last layer with an early one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import Generation
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_words
from qkedit.plugins.core.random_controls import check_control, control_generator, permuted_changes
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.early_exit.layer_logits import LayerChoice, LayerLogits
from qkedit.selection import check_layers, select_layers


@dataclass(frozen=True, kw_only=True)
class DoLaReport(PluginReport):
    """The report of DoLa on one answer.

    Attributes:
        steps: the number of decoding steps.
        chosen: by layer, the number of steps in which it was contrasted with, over all prompts.
    """

    steps: int
    chosen: dict[int, int]


@dataclass(frozen=True)
class DoLa:
    """Settings of DoLa.

    Attributes:
        layers: the candidate layers: every second layer of the first half ("low", published for long answers) or of
            the second half ("high", for short ones), or layers by their numbers. The embeddings are never a candidate.
        beta: tokens less likely than this share of the likeliest one are excluded.
        norm: whether the final norm is applied to the early state ("final"), or not, as in the published code
            ("published").
        control: the seed of a matched random control, which gives the changes of logits to random tokens among the
            plausible ones; None for the method itself.
    """

    name: ClassVar[str] = "dola"

    layers: str = "low"
    beta: float = 0.1
    norm: Literal["published", "final"] = "final"
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_control(self.control, self.name)
        if self.layers not in ("low", "high"):
            check_layers(self.layers, "dola layers")
        if not 0 <= self.beta <= 1:
            raise UsageError(f"{self.beta} is not a share", where="dola beta", remedy="give a number from 0 to 1")
        check_words(self)

    def bind(self, modules: VLMModules) -> BoundDoLa:
        """Check the settings against a model. Raises UsageError for layers that it does not have."""
        count = len(modules.layers)
        if self.layers in ("low", "high"):
            # State number n of the published code is the one after layer n − 1.
            first, end = (2, count // 2 + 1) if self.layers == "low" else (max(2, count // 2), count)
            layers = tuple(number - 1 for number in range(first, end, 2)) or (0,)
        else:
            layers = select_layers(self.layers, count, where="dola layers")
        LayerLogits(modules, self.name)
        early = tuple(layer for layer in layers if layer < count - 1)
        return BoundDoLa(modules, early, self.beta, self.norm == "final", control_generator(self.control))


@dataclass(frozen=True)
class BoundDoLa:
    """DoLa on one model."""

    modules: VLMModules
    layers: tuple[int, ...]
    beta: float
    normed: bool
    control: torch.Generator | None

    def start_decoding(self, generation: Generation) -> LayerContrast:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported."""
        refuse_settings(generation, OF_EVERY_STEP, DoLa.name)
        return LayerContrast(self)


class LayerContrast(LayerChoice):
    """The contrast for one request."""

    def __init__(self, plugin: BoundDoLa) -> None:
        super().__init__(plugin.modules, plugin.layers, DoLa.name)
        self._plugin = plugin

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return `log p − log q` where p is plausible, −∞ elsewhere; q is each row's candidate furthest from p."""
        early = self.layer_logits.of(self._plugin.layers, logits, normed=self._plugin.normed).to(logits.device)
        final, candidates = logits.log_softmax(dim=-1), early.log_softmax(dim=-1)
        choice = divergence(final, candidates).argmax(dim=0)  # [batch]
        edited = final - candidates[choice, torch.arange(len(final), device=final.device)]
        self.count(choice)
        if self._plugin.beta > 0:
            implausible = final < final.max(dim=-1, keepdim=True).values + math.log(self._plugin.beta)
            edited = edited.masked_fill(implausible, -torch.inf)
        return permuted_changes(edited, final, self._plugin.control)

    def report(self) -> DoLaReport:
        """Return the report."""
        return DoLaReport(steps=self.steps, chosen=self.chosen())


def divergence(final: Tensor, candidates: Tensor) -> Tensor:
    """Return the divergence of each candidate from the final distribution, `[layers, batch]`.

    ½ (KL(m ‖ p) + KL(m ‖ q)) with m = (p + q) / 2: the published code's form of the Jensen–Shannon divergence, which
    swaps the arguments of KL.

    Args:
        final: log p, `[batch, vocabulary]`.
        candidates: log q of each layer, `[layers, batch, vocabulary]`.
    """
    mean = (final.exp() + candidates.exp()) / 2
    both = -2 * torch.special.entr(mean) - mean * (final + candidates)
    return both.sum(dim=-1) / 2
