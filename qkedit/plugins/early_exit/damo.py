"""DAMO (ICLR 2025): continue the last token's state by the average of its changes once the prediction reverses.

After each layer l of the second half, with h_l the state of the last token, P_l = softmax(head(h_l)), and both
averages zero before the first of these layers:

    D_l = α D_{l−1} + (1 − α) (P_{l−1} − P_{l−2})
    β   = β₂ if cos(P_l − P_{l−1}, D_l) < τ, else β₁
    M_l = β M_{l−1} + (1 − β) (h_l − h_{l−1})

From the first layer on whose β is β₂, h_l is replaced by h_{l−1} + M_l. This is what the published code computes; its
head takes states without the final norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.random_controls import check_control, control_generator, random_signs
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.early_exit.layer_logits import LayerLogits


@dataclass(frozen=True, kw_only=True)
class DAMOReport(PluginReport):
    """The report of DAMO on one answer.

    Attributes:
        steps: the number of decoding steps.
        share_edited: the share of steps, over all prompts, in which a state was replaced.
        edited_from: by layer, the number of steps in which replacement began after it, over all prompts.
    """

    steps: int
    share_edited: float
    edited_from: dict[int, int]


@dataclass(frozen=True)
class DAMO:
    """Settings of DAMO; the defaults are those of the published script for MME.

    Attributes:
        tau: τ, the cosine below which the prediction counts as reversed; −1 changes nothing.
        beta1, beta2: β₁ and β₂, the share of earlier changes in the average of the states' changes. The published
            code uses 0.2 and 0.4 for POPE.
        alpha: α, the share of earlier changes in the average of the predictions' changes.
        start: the first layer whose state may be replaced, from 2; None for the middle of the depth (16 of 32).
        norm: whether the final norm is applied before the head ("final"), or not, as in the published code.
        control: the seed of a matched random control, in which each number of a state changes by as much, up or down
            at random; None for the method itself.
    """

    name: ClassVar[str] = "damo"

    tau: float = -0.3
    beta1: float = 0.05
    beta2: float = 0.2
    alpha: float = 0.7
    start: int | None = None
    norm: Literal["published", "final"] = "published"
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_control(self.control, self.name)
        if not -1 <= self.tau <= 1:
            raise UsageError(f"{self.tau} is not a cosine", where="damo tau", remedy="give a number from -1 to 1")
        for option, share in (("beta1", self.beta1), ("beta2", self.beta2), ("alpha", self.alpha)):
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise UsageError(f"{share} is not a share", where=f"damo {option}", remedy="give a number from 0 to 1")
        if self.norm not in ("published", "final"):
            raise UsageError(f"{self.norm!r} is not known", where="damo norm", remedy="give published or final")

    def bind(self, modules: VLMModules) -> BoundDAMO:
        """Check the settings against a model. Raises UsageError for a layer that it does not have."""
        count = len(modules.layers)
        start = max(2, count // 2) if self.start is None else self.start
        if not 2 <= start < count:
            raise UsageError(
                f"layer {start} has no two layers before it, or is not in the model",
                where="damo start",
                remedy=f"give 2 to {count - 1}" if count > 2 else "use a deeper model",
            )
        LayerLogits(modules, self.name)
        return BoundDAMO(self, modules, start, control_generator(self.control))


@dataclass(frozen=True)
class BoundDAMO:
    """DAMO on one model."""

    settings: DAMO
    modules: VLMModules
    first: int
    control: torch.Generator | None

    def start_decoding(self, generation: Generation) -> Momentum:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported."""
        refuse_settings(generation, (*OF_EVERY_STEP, "past_key_values", "inputs_embeds", "use_cache"), DAMO.name)
        return Momentum(self)


class Momentum(DecodingEdit):
    """DAMO in one request; every forward pass begins anew."""

    def __init__(self, plugin: BoundDAMO) -> None:
        self._plugin = plugin
        self._head = LayerLogits(plugin.modules, DAMO.name)
        # The two layers before the first one are only read.
        self.edited_states = frozenset(range(plugin.first - 2, len(plugin.modules.layers)))
        self._passing: _Pass
        self._steps = self._choices = 0
        self._edited_from: dict[int, int] = dict.fromkeys(sorted(self.edited_states), 0)

    def edit_state(self, layer: int, hidden: Tensor) -> Tensor:
        """Return the state after `layer`, replaced in the rows whose prediction has reversed in this pass."""
        if layer == min(self.edited_states):
            self._passing = _Pass(torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device))
        passing, edited = self._passing, hidden
        if layer >= self._plugin.first:
            was_on = passing.is_on
            change = passing.follow(hidden, self._prediction(hidden), self._plugin.settings)
            change = change * random_signs(tuple(change.shape), self._plugin.control).to(change.device)
            self._edited_from[layer] += int((passing.is_on & ~was_on).sum())
            edited = torch.where(passing.is_on[:, None], (hidden.float() + change).to(hidden.dtype), hidden)
        # The next layer continues from the edited state.
        passing.states = (*passing.states[-1:], edited)
        passing.predictions = (*passing.predictions[-1:], self._prediction(edited))
        if layer == max(self.edited_states):
            self._steps += 1
            self._choices += len(hidden)
        return edited

    def _prediction(self, hidden: Tensor) -> Tensor:
        logits = self._head.head(hidden, normed=self._plugin.settings.norm == "final")
        return logits.to(hidden.device).softmax(dim=-1)

    def report(self) -> DAMOReport:
        """Return the report."""
        return DAMOReport(
            steps=self._steps,
            share_edited=sum(self._edited_from.values()) / max(1, self._choices),
            edited_from={layer: count for layer, count in self._edited_from.items() if count},
        )


@dataclass
class _Pass:
    """The state of one forward pass, in all rows.

    Attributes:
        is_on: the rows whose states are replaced, `[batch]`.
        states, predictions: the last two h `[batch, D]` and P `[batch, vocabulary]`.
        turn, momentum: D `[batch, vocabulary]` and M `[batch, D]`.
    """

    is_on: Tensor
    states: tuple[Tensor, ...] = ()
    predictions: tuple[Tensor, ...] = ()
    turn: Tensor | float = 0.0
    momentum: Tensor | float = 0.0

    def follow(self, hidden: Tensor, prediction: Tensor, settings: DAMO) -> Tensor:
        """Include one layer, and return the change of its state where `is_on`, `[batch, D]`."""
        earlier, before = self.predictions
        self.turn = settings.alpha * self.turn + (1 - settings.alpha) * (before - earlier)
        turns_back = torch.cosine_similarity(prediction - before, self.turn, dim=-1) < settings.tau
        self.is_on = self.is_on | turns_back
        beta = torch.where(turns_back, settings.beta2, settings.beta1)[:, None].float()
        change = hidden.float() - self.states[-1].to(hidden.device).float()
        self.momentum = beta * self.momentum + (1 - beta) * change
        return self.momentum - change
