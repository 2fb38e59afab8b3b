"""The settings of SCR with their checks; `plugin` describes the method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from qkedit.errors import UsageError
from qkedit.plugins.core.option_limits import check_words
from qkedit.plugins.scr.sources import Claim
from qkedit.selection import check_layers


@dataclass(frozen=True)
class SCRSettings:
    """The settings of SCR.

    Attributes:
        layers: the decoder layers after which states are redistributed, such as "0-15" or "mid"; by default the first
            half, 0 … ⌊L/2 + ½⌋ − 1 of L layers, which is not the published range of every model (see the presets).
        diagnosis: the layers in which attention is scored; by default ⌊L/4 + ½⌋ … ⌊L/2 + ½⌋, 8-16 of 32.
        sources: K, the number of candidate cells.
        per: whether K counts per grid (a tile, a thumbnail, a coarse and a fine grid are one each) or for all grids of
            an image together.
        factor: λ, at least 1; 1 changes nothing.
        selection: "attention", or "uniform": sources drawn at random, which the paper calls Uniform-Smooth.
        seed: the seed of the draw.
        queries: the tokens whose attention is scored: all text after the image except other images ("text-after"), or
            the last token of the prompt ("last-token").
        claim: whether a candidate that is a stronger source's neighbour is skipped ("greedy") or remains a source
            ("fixed").
        alone: whether a source without neighbours is divided by λ ("divide") or kept unchanged ("keep").
        remember: whether to reuse an image's sources for later prompts with the same image. Scores depend on the
            question, so this is an approximation; it saves the diagnostic pass.
        measure: whether the unedited pass runs through all edited layers, to report the norm ratio of every layer.
    """

    name: ClassVar[str] = "scr"

    layers: str | None = None
    diagnosis: str | None = None
    sources: int = 32
    per: Literal["grid", "image"] = "grid"
    factor: float = 1.10
    selection: Literal["attention", "uniform"] = "attention"
    seed: int = 0
    queries: Literal["text-after", "last-token"] = "text-after"
    claim: Claim = "greedy"
    alone: Literal["divide", "keep"] = "divide"
    remember: bool = False
    measure: bool = False

    def __post_init__(self) -> None:
        """Check the settings that do not depend on a model. Raises UsageError."""
        for option in ("layers", "diagnosis"):
            check_layers(getattr(self, option), f"scr {option}")
        if self.sources < 1:
            raise UsageError(f"{self.sources} is not a positive number", where="scr sources", remedy="give 1 or more")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise UsageError(
                f"{self.factor} is not a factor", where="scr factor", remedy="give 1 or more, such as 1.1"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"{self.seed} exceeds 64 bits", where="scr seed", remedy="give one from 0 to 2**64 - 1")
        check_words(self)
