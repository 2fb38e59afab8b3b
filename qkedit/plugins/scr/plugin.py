"""SCR, Spatial Credit Redistribution (arXiv 2602.22469): image tokens with high attention share with their neighbours.

An unedited pass over the prompt measures, for every image, how much the text after it attends to each cell, averaged
over heads and some middle layers. The K cells with the highest scores are sources, the up to eight cells around each
its neighbours. Then the prompt runs with, after every layer of an early range, from the states before the update,

    h_n ← h_n + (λ − 1) h_s    for each neighbour n of source s,        h_s ← h_s / λ.

The states are changed in float32 and cast back. Decoding is not affected: image tokens occur only in the prefill.
Choices that the paper leaves open are options here, with our defaults.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch

from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.prefill import Prefill
from qkedit.plugins.scr.diagnosis import ImageChoices, diagnose, image_keys
from qkedit.plugins.scr.redistribution import Redistribution
from qkedit.plugins.scr.settings import SCRSettings
from qkedit.selection import select_layers

# The number of images whose sources are remembered, if that is enabled.
REMEMBERED = 1000


@dataclass(frozen=True)
class SCR(SCRSettings):
    """SCR with these settings; see `SCRSettings` for their meaning."""

    def bind(self, parts: VLMModules) -> BoundSCR:
        """Fill in the layers that depend on the model.

        Raises:
            UsageError: the model does not have a layer, or no layer of the diagnosis computes attention.
        """
        count = len(parts.layers)
        quarter, half = math.floor(count / 4 + 0.5), math.floor(count / 2 + 0.5)
        last = min(half, count - 1)
        edited = select_layers(self.layers or f"0-{max(half, 1) - 1}", count, where="scr layers")
        diagnosis = self.diagnosis or f"{min(quarter, last)}-{last}"
        return BoundSCR(self, edited, select_layers(diagnosis, count, parts.attention_layers, "scr diagnosis"))


class BoundSCR:
    """SCR on one model; optionally it remembers sources between requests."""

    def __init__(self, settings: SCRSettings, edited: tuple[int, ...], scored: tuple[int, ...]) -> None:
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
