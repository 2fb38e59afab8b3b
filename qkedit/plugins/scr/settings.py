"""SCR, Spatial Credit Redistribution (arXiv 2602.22469): image tokens that draw attention share with their neighbours.

An unedited pass over the prompt finds, for every image, how much the text behind it attends to each cell, averaged
over heads and some middle layers. The K cells with the highest scores are sources, the up to eight cells around each
its neighbours. Then the prompt runs with, after every layer of an early range, from the states before the update,

    h_n ← h_n + (λ − 1) h_s    for each neighbour n of source s,        h_s ← h_s / λ.

The states are changed in float32 and cast back. Decoding needs nothing: image tokens exist in the prefill alone.
What the paper leaves open is an option here, with the default that this package takes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import torch

from qkedit.errors import UsageError
from qkedit.plugins.scr.diagnosis import ImageChoices, diagnose, image_keys
from qkedit.plugins.scr.redistribution import Redistribution
from qkedit.plugins.scr.sources import Claim
from qkedit.plugins.transformers.modules import ModelParts
from qkedit.plugins.transformers.prefill import Prefill
from qkedit.selection import check_layers, select_layers

# Images whose sources are remembered, where that is switched on.
REMEMBERED = 1000


@dataclass(frozen=True)
class SCR:
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
            raise UsageError(f"{self.factor} is no factor", where="scr factor", remedy="give 1 or more, such as 1.1")
        for option, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, option) not in get_args(hint):
                raise UsageError(
                    f"{getattr(self, option)!r} is not known",
                    where=f"scr {option}",
                    remedy=f"give {' or '.join(get_args(hint))}",
                )

    def bind(self, parts: ModelParts) -> BoundSCR:
        """Fill in the layers that depend on the model.

        Raises:
            UsageError: a layer is beyond the model, or no layer of the diagnosis computes attention.
        """
        count = len(parts.layers)
        quarter, half = math.floor(count / 4 + 0.5), math.floor(count / 2 + 0.5)
        last = min(half, count - 1)
        edited = select_layers(self.layers or f"0-{max(half, 1) - 1}", count, where="scr layers")
        diagnosis = self.diagnosis or f"{min(quarter, last)}-{last}"
        return BoundSCR(self, edited, select_layers(diagnosis, count, parts.attending, "scr diagnosis"))


class BoundSCR:
    """SCR on one model; remembers sources between requests if it is asked to."""

    def __init__(self, settings: SCR, edited: tuple[int, ...], scored: tuple[int, ...]) -> None:
        self.settings = settings
        self.edited = edited
        self.scored = scored
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._remembered: OrderedDict[bytes, ImageChoices] = OrderedDict()

    def start(self, prefill: Prefill) -> Redistribution:
        """Find the sources of every image of the request."""
        keys = image_keys(prefill) if self.settings.remember else [None] * len(prefill.grids.extents)
        known = [None if key is None else self._remembered.get(key) for key in keys]
        diagnosis = diagnose(prefill, self.settings, self.edited, self.scored, known, self._generator)
        for key, choices in zip(keys, diagnosis.choices, strict=True):
            if key is not None:
                self._remembered[key] = choices
                self._remembered.move_to_end(key)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return Redistribution(prefill, self.settings, self.edited, self.scored, diagnosis)
