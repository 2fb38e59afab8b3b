"""Contrastive decoding: contrast the model's logits with those of a branch that sees less."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.checkpoint.pretrained import from_pretrained
from qkedit.errors import UsageError
from qkedit.plugins.contrast.branches import Begun, StartOfBranch
from qkedit.plugins.core.decoding import DecodingEdit, Generation, LikeliestChanges
from qkedit.plugins.core.generation_limits import OF_A_BRANCH, refuse_settings
from qkedit.plugins.core.random_controls import permuted_changes
from qkedit.plugins.core.report import PluginReport

# The weights of the model's own logits and of the branch's, by the number of the token, counted from 0.
Weights = Callable[[int], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class ContrastReport(PluginReport):
    """The report of a contrast on one answer.

    Attributes:
        steps: the number of decoding steps with a branch; 0 without images, or if the branch has no weight.
        likeliest_changed: the share of steps, over all prompts, whose likeliest token differs from the model's.
        signal_share: ᾱ of the noise, the share of the image's variance that the branch sees; None without noise.
    """

    steps: int
    likeliest_changed: float
    signal_share: float | None = None


@dataclass(frozen=True)
class BoundContrast:
    """A contrast on one model.

    Attributes:
        name: the method's name.
        weights: the weights of both logits; None without a branch.
        beta: β of the plausibility cut.
        start_branch: the function that starts the branch.
        signal_share: ᾱ of the noise on the branch's image; None without noise.
        control: the generator of the control; None for the method itself.
    """

    name: str
    weights: Weights | None
    beta: float
    start_branch: StartOfBranch
    signal_share: float | None = None
    control: torch.Generator | None = None

    def start_decoding(self, generation: Generation) -> Contrast:
        """Begin one call of `generate`. Raises UsageError for settings that do not support a branch."""
        if generation.inputs.get("pixel_values") is None:
            return Contrast(self, None, has_images=False)
        if self.weights is None:
            return Contrast(self, None, has_images=True)
        refuse_settings(generation, OF_A_BRANCH, self.name)
        return Contrast(self, self.start_branch(generation), has_images=True)


class Contrast(DecodingEdit):
    """The contrast for one request."""

    def __init__(self, plugin: BoundContrast, begun: Begun | None, *, has_images: bool) -> None:
        self._plugin = plugin
        self._begun = begun
        self._has_images = has_images
        self._steps = 0
        self._changes = LikeliestChanges()

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the weighted sum of l and l′ where l is plausible, −∞ elsewhere."""
        if not self._has_images:
            return logits
        edited = logits
        if self._begun is not None and self._plugin.weights is not None:
            # The branch's cache needs every token, also where its logits have no weight yet.
            other = self._begun.branch.logits(tokens).to(logits.device)
            own_weight, weight = self._plugin.weights(self._steps)
            edited = own_weight * logits + weight * other
            self._steps += 1
        if self._plugin.beta > 0:
            plausible = logits >= logits.max(dim=-1, keepdim=True).values + math.log(self._plugin.beta)
            edited = edited.masked_fill(~plausible, -torch.inf)
        edited = permuted_changes(edited, logits, self._plugin.control)
        if self._begun is not None and self._begun.contrasted is not None:
            contrasted = torch.tensor(self._begun.contrasted, device=logits.device)[:, None]
            edited = torch.where(contrasted, edited, logits)
        self._changes.count(edited, logits)
        return edited

    def close(self) -> None:
        """End the branch."""
        if self._begun is not None:
            self._begun.branch.close()

    def report(self) -> ContrastReport:
        """Return the report."""
        of_branch = self._begun.warnings if self._begun is not None else ()
        return ContrastReport(
            steps=self._steps,
            likeliest_changed=self._changes.share,
            signal_share=self._plugin.signal_share if self._has_images else None,
            warnings=of_branch if self._has_images else ("there is no image, so nothing is contrasted",),
        )


def sentence_tokens(sentence: str, tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Return the tokens of a sentence, without special tokens at its beginning and end.

    Args:
        sentence: the text.
        tokenizer: the model's tokenizer; None loads it from the model's directory.
        model: the model.

    Raises:
        UsageError: the model's directory has no tokenizer.
    """
    from transformers import AutoTokenizer

    if tokenizer is None:
        try:
            tokenizer = from_pretrained(AutoTokenizer, model.name_or_path)
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(
                f"the tokenizer, which knows the sentence's tokens, cannot be loaded from {model.name_or_path!r}",
                where="icd",
                remedy="give ICD(tokenizer=…)",
            ) from error
    return tuple(tokenizer(sentence, add_special_tokens=False)["input_ids"])
