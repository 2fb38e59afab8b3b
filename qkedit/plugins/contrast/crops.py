"""CRoPS (arXiv 2601.00659): contrast with two branches, one without the image and one with its least attended tokens.

With p the model's distribution over the plausible tokens, p₀ that of a branch without image which keeps the n_t text
tokens that the last token attends to least, and p₁ that of SID's branch:

    f = log p + (e^(λt) − 1) (log p − log p₀)
    (1 + α) f − α log p₁         unless max p > the limit: then log p

at the t-th token of the answer, counted from 1, and n_t = ⌊40 + 30 (1 − e^(−t / 1000))⌋.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.contrast.branches import Begun, least_attended, least_attended_text
from qkedit.plugins.contrast.plugin import ContrastReport
from qkedit.plugins.contrast.selection import check_keep, check_selection
from qkedit.plugins.contrast.settings import ContrastSettings
from qkedit.plugins.core.decoding import DecodingEdit, Generation, LikeliestChanges
from qkedit.plugins.core.generation_limits import OF_A_BRANCH, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest
from qkedit.plugins.core.random_controls import control_generator, permuted_changes


@dataclass(frozen=True)
class CRoPS(ContrastSettings):
    """Settings of CRoPS.

    Attributes:
        decay: λ, by which the weight of the branch without image grows.
        alpha: α, the weight of SID's branch.
        beta: the plausibility cut: tokens less likely than β times the likeliest one are excluded; 0 for no cut.
        limit: nothing is contrasted where the likeliest token is more probable than this.
        keep: the share of image tokens that SID's branch keeps, or their number from 1 on.
        keep_text, more_text: the number of text tokens that the branch without image keeps at first, and the number
            by which it grows at most.
        start: the first decoder layer that attends to the kept tokens alone.
        control: as in VCD.
    """

    name: ClassVar[str] = "crops"
    numbers: ClassVar[tuple[str, ...]] = ("decay", "alpha", "beta", "limit")

    decay: float = 0.01
    alpha: float = 1.0
    beta: float = 0.1
    limit: float = 0.95
    keep: int | float = 0.25
    keep_text: int = 40
    more_text: int = 30
    start: int = 2
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        check_largest(self.name, keep_text=self.keep_text, more_text=self.more_text)
        check_keep(self.keep, self.name)
        for option, least in (("keep_text", 1), ("more_text", 0), ("start", 1)):
            if getattr(self, option) < least:
                raise UsageError(
                    f"{getattr(self, option)} is too small", where=f"crops {option}", remedy=f"give {least} or more"
                )

    def bind(self, modules: VLMModules) -> BoundCRoPS:
        """Check the settings against a model. Raises UsageError or UnsupportedForm."""
        check_selection(modules, self.start, self.name)
        return BoundCRoPS(self, control_generator(self.control))

    def kept_text(self, token: int) -> int:
        """Return the number of text tokens that are kept at a token of the answer, counted from 1."""
        return math.floor(self.keep_text - self.more_text * math.expm1(-token / 1000))


@dataclass(frozen=True)
class BoundCRoPS:
    """CRoPS on one model."""

    settings: CRoPS
    control: torch.Generator | None

    def start_decoding(self, generation: Generation) -> TwoContrasts:
        """Begin one call of `generate`. Raises UsageError for settings that do not support a branch."""
        settings = self.settings
        if generation.inputs.get("pixel_values") is None:
            return TwoContrasts(self, ())
        refuse_settings(generation, OF_A_BRANCH, settings.name)
        of_text = least_attended_text(settings.kept_text, settings.start)
        of_image = least_attended(settings.keep, settings.start, settings.name)
        return TwoContrasts(self, (of_text(generation), of_image(generation)))


class TwoContrasts(DecodingEdit):
    """Both contrasts for one request; a request without images has no branches."""

    def __init__(self, plugin: BoundCRoPS, begun: tuple[Begun, ...]) -> None:
        self._plugin = plugin
        self._begun = begun
        self._steps = 0
        self._changes = LikeliestChanges()

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the contrasted log-probabilities where the model's own are plausible, −∞ elsewhere."""
        if not self._begun:
            return logits
        text, image = (begun.branch.logits(tokens).to(logits.device).log_softmax(dim=-1) for begun in self._begun)
        self._steps += 1
        settings = self._plugin.settings
        likeliest = logits.max(dim=-1, keepdim=True).values
        plausible = logits >= likeliest + (math.log(settings.beta) if settings.beta > 0 else -math.inf)
        own = logits - logits.masked_fill(~plausible, -torch.inf).logsumexp(dim=-1, keepdim=True)
        # Bounded, so that the weight of a very late token is finite.
        edited = own + math.expm1(min(settings.decay * self._steps, 60.0)) * (own - text)
        edited = (1 + settings.alpha) * edited - settings.alpha * image
        is_sure = own.max(dim=-1, keepdim=True).values.exp() > settings.limit
        edited = torch.where(is_sure, own, edited).masked_fill(~plausible, -torch.inf)
        edited = permuted_changes(edited, own, self._plugin.control)
        self._changes.count(edited, logits)
        return edited

    def close(self) -> None:
        """End the branches."""
        for begun in self._begun:
            begun.branch.close()

    def report(self) -> ContrastReport:
        """Return the report."""
        of_branches = tuple(warning for begun in self._begun for warning in begun.warnings)
        return ContrastReport(
            steps=self._steps,
            likeliest_changed=self._changes.share,
            warnings=of_branches if self._begun else ("there is no image, so nothing is contrasted",),
        )
