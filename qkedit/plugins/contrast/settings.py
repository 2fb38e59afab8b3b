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
from qkedit.plugins.contrast.branches import disturbed_prompt, least_attended, no_image, noisy_image
from qkedit.plugins.contrast.noise import STEPS, signal_shares
from qkedit.plugins.contrast.plugin import BoundContrast, Weights, sentence_tokens
from qkedit.plugins.contrast.selection import check_keep, check_selection
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest, check_weights
from qkedit.plugins.core.random_controls import check_control, control_generator

DISTURBING_SENTENCE = "You are a confused object detector."


@dataclass(frozen=True)
class VCD:
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
        check_options(self.name, alpha=self.alpha, beta=self.beta)
        check_control(self.control, self.name)
        if not 0 <= self.step < STEPS:
            raise UsageError(f"{self.step} is not a step", where="vcd step", remedy=f"give 0 to {STEPS - 1}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(
                f"{self.seed} is not a seed", where="vcd seed", remedy="give a number from 0 to 2**63 - 1"
            )

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        return BoundContrast(
            self.name,
            constant(self.alpha),
            self.beta,
            noisy_image(self.step, self.seed),
            signal_share=signal_shares()[self.step],
            control=control_generator(self.control),
        )


@dataclass(frozen=True)
class ICD:
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
        check_options(self.name, alpha=self.alpha, beta=self.beta)
        check_control(self.control, self.name)
        if not self.sentence.strip():
            raise UsageError("there is no sentence", where="icd sentence", remedy="give one")

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Find the sentence's tokens. Raises UsageError if the tokenizer cannot be loaded."""
        branch = disturbed_prompt(sentence_tokens(self.sentence, self.tokenizer, modules.model))
        return BoundContrast(
            self.name, constant(self.alpha), self.beta, branch, control=control_generator(self.control)
        )


@dataclass(frozen=True)
class M3ID:
    """Settings of M3ID (arXiv 2403.14003): the branch sees no image, and its weight grows with every token.

    Attributes:
        decay: λ in the weight α_t = (1 − e^(−λt)) / e^(−λt) at the t-th token, counted from 0. So the first token,
            and with it the answer to most yes-or-no questions, is the model's own.
        beta, control: as in VCD.
    """

    name: ClassVar[str] = "m3id"

    decay: float = 0.02
    beta: float = 0.1
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        check_options(self.name, decay=self.decay, beta=self.beta)
        check_control(self.control, self.name)

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        # Bounded, so that the weight of a very late token is finite.
        weights = _contrasting(lambda step: math.expm1(min(self.decay * step, 80.0))) if self.decay > 0 else None
        return BoundContrast(self.name, weights, self.beta, no_image(), control=control_generator(self.control))


@dataclass(frozen=True)
class PAIContrast:
    """Settings of the contrast of PAI (arXiv 2407.21771, equation 9): γ log p + (1 − γ) log p′, p′ without the image.

    Attributes:
        gamma: γ, at least 1; with 1 the model is unchanged. In the other methods' terms, α = γ − 1.
        beta, control: as in VCD.
    """

    name: ClassVar[str] = "pai-contrast"

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
        check_options(self.name, beta=self.beta)
        check_control(self.control, self.name)

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        weights = constant(self.gamma - 1)
        return BoundContrast(self.name, weights, self.beta, no_image(), control=control_generator(self.control))


@dataclass(frozen=True)
class SID:
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
        check_options(self.name, alpha=self.alpha, beta=self.beta)
        check_control(self.control, self.name)
        check_keep(self.keep, self.name)
        if self.start < 1:
            raise UsageError(f"no layer is before {self.start}", where="sid start", remedy="give 1 or more, such as 2")

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Check the settings against a model. Raises UsageError or UnsupportedForm."""
        check_selection(modules, self.start, self.name)
        branch = least_attended(self.keep, self.start, self.name)
        return BoundContrast(
            self.name, constant(self.alpha), self.beta, branch, control=control_generator(self.control)
        )


def constant(alpha: float) -> Weights | None:
    """Return the weights of a contrast with one α; None for 0."""
    return _contrasting(lambda step: alpha) if alpha > 0 else None


def _contrasting(alpha: Callable[[int], float]) -> Weights:
    return lambda step: (1 + alpha(step), -alpha(step))


def check_options(name: str, **options: float) -> None:
    """Check weights and shares. Raises UsageError for an invalid weight, or a `beta` above 1."""
    check_weights(name, **options)
    for option, value in options.items():
        if option == "beta" and value > 1:
            raise UsageError(f"{value} is not a share", where=f"{name} beta", remedy="give a number from 0 to 1")
