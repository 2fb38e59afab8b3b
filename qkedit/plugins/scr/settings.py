"""The settings of SCR, checked in themselves; `plugin` says what the method does with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from qkedit.errors import UsageError
from qkedit.plugins.scr.sources import Claim
from qkedit.selection import check_layers


@dataclass(frozen=True)
class SCRSettings:
    """Settings of SCR.

    Attributes:
        layers: after which decoder layers states are redistributed, such as "0-15" or "mid"; by default the first
            half, 0 … ⌊L/2 + ½⌋ − 1 of L layers, which is not the published range of every model (see the presets).
        diagnosis: in which layers attention is scored; by default ⌊L/4 + ½⌋ … ⌊L/2 + ½⌋, 8-16 of 32.
        sources: how many cells are candidates, K.
        per: whether K is counted for each grid (a tile, a thumbnail, a coarse and a fine grid are one each) or for all
            grids of an image together.
        factor: λ, at least 1; 1 changes nothing.
        selection: "attention", or "uniform": sources drawn at random, which the paper calls Uniform-Smooth.
        seed: of the draw.
        queries: whose attention is scored: all text behind the image that belongs to no other image ("text-after"), or
            the last token of the prompt ("last-token").
        claim: whether a candidate that is a stronger source's neighbour is passed over ("greedy") or remains a source
            ("fixed").
        alone: whether a source without neighbours is divided by λ ("divide") or left as it is ("keep").
        remember: reuse an image's sources for later prompts with the same image. Scores depend on the question, so
            this is an approximation; it saves the diagnostic pass.
        measure: run the unedited pass through all edited layers, so that every layer's norm ratio is reported.
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
        """Check the settings in themselves. Raises UsageError."""
        for option in ("layers", "diagnosis"):
            if getattr(self, option) is not None:
                check_layers(getattr(self, option), f"scr {option}")
        if self.sources < 1:
            raise UsageError(f"{self.sources} sources share nothing", where="scr sources", remedy="give 1 or more")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise UsageError(
                f"{self.factor} is not a factor", where="scr factor", remedy="give 1 or more, such as 1.1"
            )
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"{self.seed} is beyond 64 bits", where="scr seed", remedy="give one from 0 to 2**64 - 1")
        for option, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, option) not in get_args(hint):
                raise UsageError(
                    f"{getattr(self, option)!r} is not known",
                    where=f"scr {option}",
                    remedy=f"give {' or '.join(get_args(hint))}",
                )
