"""KVSmooth (arXiv 2602.04268): smooth the cached keys and values of an answer's tokens over time.

After the token t of an answer has passed a decoder layer, its key and value in the cache become

    k_t ← (1 − λ_t) k_t + λ_t k_{t−1}        v_t ← (1 − λ_t) v_t + λ_t v_{t−1}

where t − 1 is the column before it, smoothed already. λ_t grows with the entropy of the token's attention:

    λ_t = clip(rank of the entropy among the last 15 of the answer, 0.9 − 0.2, 0.9 + 0.2),  at most 1

Our choices where the paper's are not known: keys are smoothed in the form of the cache, after their rotation by
position; the token's own attention reads its unsmoothed key; the entropy is that of the mean over heads; the rank
counts the lower entropies and half of the token itself, so that 0 < rank < 1; the prompt's entropies do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qkedit.errors import UsageError
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.random_controls import check_control, control_generator, random_signs
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.transformers.cache import cache_layer
from qkedit.selection import check_layers, select_layers

_REFUSED = (*OF_EVERY_STEP, "num_beams", "past_key_values", "inputs_embeds", "use_cache")
# The first of 32 published layers.
_FIRST = 3 / 32


@dataclass(frozen=True, kw_only=True)
class KVSmoothReport(PluginReport):
    """The report on one answer.

    Attributes:
        layers: the layers whose keys and values were smoothed.
        tokens: the number of tokens per prompt that were smoothed.
        mean_strength: λ on average over prompts, tokens and layers; 0 if there are none.
    """

    layers: tuple[int, ...]
    tokens: int
    mean_strength: float


@dataclass(frozen=True)
class KVSmooth:
    """Settings of KVSmooth.

    Attributes:
        strength: the middle of the range of λ; with a spread of 0 it is λ itself.
        spread: how far λ may be from `strength`.
        window: the number of tokens among whose entropies a token's own is ranked.
        layers: the decoder layers; None for 3 to 31 of 32, and the same shares of other depths.
        control: the seed of a matched random control, in which each number of a key and a value changes by as much, up
            or down at random; None for the method itself.
    """

    name: ClassVar[str] = "kvsmooth"

    strength: float = 0.9
    spread: float = 0.2
    window: int = 15
    layers: str | None = None
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_control(self.control, self.name)
        for option in ("strength", "spread"):
            if not (math.isfinite(value := getattr(self, option)) and 0 <= value <= 1):
                raise UsageError(
                    f"{value} is not a share", where=f"{self.name} {option}", remedy="give a number from 0 to 1"
                )
        if self.window < 1:
            raise UsageError(
                f"{self.window} is not a window size", where=f"{self.name} window", remedy="give 1 or more"
            )
        if self.layers is not None:
            check_layers(self.layers, f"{self.name} layers")

    def bind(self, modules: VLMModules) -> BoundKVSmooth:
        """Check the settings against a model. Raises UsageError if it does not have these layers."""
        count = len(modules.layers)
        chosen = self.layers or f"{min(round(_FIRST * count), count - 1)}-{count - 1}"
        layers = select_layers(chosen, count, modules.attention_layers, f"{self.name} layers")
        return BoundKVSmooth(self, layers, control_generator(self.control))


@dataclass(frozen=True)
class BoundKVSmooth:
    """KVSmooth on one model."""

    settings: KVSmooth
    layers: tuple[int, ...]
    control: torch.Generator | None = None

    def start_decoding(self, generation: Generation) -> SmoothedCache:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported."""
        refuse_settings(generation, _REFUSED, KVSmooth.name)
        return SmoothedCache(self)


class SmoothedCache(DecodingEdit):
    """The edit of one request's cache, token by token."""

    def __init__(self, plugin: BoundKVSmooth) -> None:
        self._settings = plugin.settings
        self._control = plugin.control
        self.watched_layers = frozenset(plugin.layers)
        self._entropies: dict[int, list[Tensor]] = {layer: [] for layer in plugin.layers}
        self._is_prefill = True
        self._tokens = 0
        self._sum = 0.0

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Store the entropy of an answer token's attention, `[batch]`."""
        if not self._is_prefill:
            last = self._entropies[layer]
            last.append(torch.special.entr(shares.mean(dim=1)).sum(dim=-1))
            del last[: -self._settings.window]

    @torch.no_grad()
    def edit_cache(self, cache: Any) -> None:
        """Smooth the last column of every chosen layer, unless it belongs to the prompt."""
        if self._is_prefill:
            self._is_prefill = False
            return
        self._tokens += 1
        for index, entropies in self._entropies.items():
            strength = self._strength(torch.stack(entropies))
            self._sum += float(strength.mean()) / len(self._entropies)
            layer = cache_layer(cache, index, KVSmooth.name)
            for states in (layer.keys, layer.values):
                share = strength.to(states.device)[:, None, None]
                own = states[:, :, -1].float()
                smoothed = (1 - share) * own + share * states[:, :, -2].float()
                if self._control is not None:
                    signs = random_signs(tuple(own.shape), self._control).to(own.device)
                    smoothed = own + signs * (smoothed - own)
                states[:, :, -1].copy_(smoothed.to(states.dtype))

    def _strength(self, entropies: Tensor) -> Tensor:
        """Return λ of the last of some tokens, `[tokens, batch]` → `[batch]`."""
        rank = ((entropies[:-1] < entropies[-1]).sum(dim=0) + 0.5) / len(entropies)
        middle, spread = self._settings.strength, self._settings.spread
        return rank.clamp(max(0.0, middle - spread), min(1.0, middle + spread))

    def report(self) -> KVSmoothReport:
        """Return the report."""
        return KVSmoothReport(
            layers=tuple(sorted(self.watched_layers)),
            tokens=self._tokens,
            mean_strength=self._sum / max(1, self._tokens),
        )
