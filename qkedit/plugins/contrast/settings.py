"""The published contrastive methods as settings: the inputs of the branch, and its weight.

Each method replaces the logits l of the next token with

    (1 + α_t) l − α_t l′      where  l ≥ log β + max l,  else −∞

where l′ are the logits of a branch that sees less: a noisy image (VCD), a disturbing sentence (ICD), no image (M3ID,
PAI) or the least attended parts of an image (SID).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qkedit.errors import UsageError
from qkedit.plugins.contrast.branches import (
    StartOfBranch,
    disturbed_prompt,
    least_attended,
    no_image,
    noisy_image,
)
from qkedit.plugins.contrast.noise import STEPS, signal_shares
from qkedit.plugins.contrast.plugin import BoundContrast, Weights, sentence_tokens
from qkedit.plugins.contrast.selection import check_keep, check_selection
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest, check_weights
from qkedit.plugins.core.random_controls import check_control, control_generator

DISTURBING_SENTENCE = "You are a confused object detector."


class ContrastSettings:
    """The base class of the settings of contrasts, with their common checks.

    Attributes:
        numbers: the options that are weights or shares.
        beta, control: as in VCD.
    """

    name: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    beta: float
    control: int | None

    def __post_init__(self) -> None:
        """Check the settings that contrasts have in common. Raises UsageError."""
        check_weights(self.name, **{option: getattr(self, option) for option in self.numbers})
        if self.beta > 1:
            raise UsageError(
                f"{self.beta} is not a share", where=f"{self.name} beta", remedy="give a number from 0 to 1"
            )
        check_control(self.control, self.name)

    def bound(
        self, weights: Weights | None, branch: StartOfBranch, signal_share: float | None = None
    ) -> BoundContrast:
        """Return the contrast with these weights and this branch, on one model."""
        return BoundContrast(self.name, weights, self.beta, branch, signal_share, control_generator(self.control))


@dataclass(frozen=True)
class VCD(ContrastSettings):
    """Settings of VCD (Visual Contrastive Decoding, arXiv 2311.16922): the branch sees a noisy image.

    Attributes:
        alpha: α, the weight of the branch. With 0 there is no branch, and only the plausibility cut is left: the
            control of every contrast, which does not change greedy search.
        beta: β, the plausibility cut: tokens less likely than β times the likeliest one are excluded; 0 for no cut.
        step: the noise step, of 1000; 500 is published for questions and captions.
        seed: the seed of the noise.
        control: the seed of a matched random control, which gives the changes of logits to random tokens among the
            plausible ones; None for the method itself.
    """

    name: ClassVar[str] = "vcd"

    alpha: float = 1.0
    beta: float = 0.1
    step: int = 500
    seed: int = 0
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        if not 0 <= self.step < STEPS:
            raise UsageError(f"{self.step} is not a step", where="vcd step", remedy=f"give 0 to {STEPS - 1}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(
                f"{self.seed} is not a seed", where="vcd seed", remedy="give a number from 0 to 2**63 - 1"
            )

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        return self.bound(constant(self.alpha), noisy_image(self.step, self.seed), signal_shares()[self.step])


@dataclass(frozen=True)
class ICD(ContrastSettings):
    """Settings of ICD (Instruction Contrastive Decoding, arXiv 2403.18715): a sentence disturbs the branch.

    Attributes:
        alpha, beta: as in VCD.
        sentence: the sentence that is inserted after the image.
        tokenizer: the model's tokenizer; None loads it from the model's directory.
        control: as in VCD.
    """

    name: ClassVar[str] = "icd"

    alpha: float = 1.0
    beta: float = 0.1
    sentence: str = DISTURBING_SENTENCE
    tokenizer: Any = field(default=None, repr=False, compare=False)
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        if not self.sentence.strip():
            raise UsageError("there is no sentence", where="icd sentence", remedy="give one")

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Find the sentence's tokens. Raises UsageError if the tokenizer cannot be loaded."""
        branch = disturbed_prompt(sentence_tokens(self.sentence, self.tokenizer, modules.model))
        return self.bound(constant(self.alpha), branch)


@dataclass(frozen=True)
class M3ID(ContrastSettings):
    """Settings of M3ID (arXiv 2403.14003): the branch sees no image, and its weight grows with every token.

    Attributes:
        decay: λ in the weight α_t = (1 − e^(−λt)) / e^(−λt) at the t-th token, counted from 0. So the first token,
            and with it the answer to most yes-or-no questions, is the model's own.
        beta, control: as in VCD.
    """

    name: ClassVar[str] = "m3id"
    numbers: ClassVar[tuple[str, ...]] = ("decay", "beta")

    decay: float = 0.02
    beta: float = 0.1
    control: int | None = None

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        # Bounded, so that the weight of a very late token is finite.
        weights = _contrasting(lambda step: math.expm1(min(self.decay * step, 80.0))) if self.decay > 0 else None
        return self.bound(weights, no_image())


@dataclass(frozen=True)
class PAIContrast(ContrastSettings):
    """Settings of the contrast of PAI (arXiv 2407.21771, equation 9): γ log p + (1 − γ) log p′, p′ without the image.

    Attributes:
        gamma: γ, at least 1; with 1 the model is unchanged. In the other methods' terms, α = γ − 1.
        beta, control: as in VCD.
    """

    name: ClassVar[str] = "pai-contrast"
    numbers: ClassVar[tuple[str, ...]] = ("beta",)

    gamma: float = 1.1
    beta: float = 0.1
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        if not self.gamma >= 1:
            raise UsageError(
                f"{self.gamma} is below 1", where="pai-contrast gamma", remedy="give 1 or more, such as 1.1"
            )
        check_largest(self.name, gamma=float(self.gamma))
        super().__post_init__()

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        return self.bound(constant(self.gamma - 1), no_image())


@dataclass(frozen=True)
class SID(ContrastSettings):
    """Settings of SID (Self-Introspective Decoding, arXiv 2408.02032): the branch keeps the least attended tokens.

    Attributes:
        alpha, beta: as in VCD. The paper uses an α of 0.5 to 1.
        keep: the number of image tokens that the branch keeps, from 1, or their share, below 1. Published values are
            100 of LLaVA-1.5's 576 for questions, 50 for captions, and 0.25.
        start: the first decoder layer that attends to the kept tokens alone.
        control: as in VCD.
    """

    name: ClassVar[str] = "sid"

    alpha: float = 1.0
    beta: float = 0.1
    keep: int | float = 100
    start: int = 2
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        check_keep(self.keep, self.name)
        if self.start < 1:
            raise UsageError(f"no layer is before {self.start}", where="sid start", remedy="give 1 or more, such as 2")

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Check the settings against a model. Raises UsageError or UnsupportedForm."""
        check_selection(modules, self.start, self.name)
        return self.bound(constant(self.alpha), least_attended(self.keep, self.start, self.name))


def constant(alpha: float) -> Weights | None:
    """Return the weights of a contrast with one α; None for 0."""
    return _contrasting(lambda step: alpha) if alpha > 0 else None


def _contrasting(alpha: Callable[[int], float]) -> Weights:
    return lambda step: (1 + alpha(step), -alpha(step))
