"""VAF (Visual Amplification Fusion, ClearSight, arXiv 2503.13107): raise the attention of later tokens to the image.

In some middle layers, the attention scores of every token after the image are scaled before the softmax: those at
image tokens by `image`, those at tokens before the image by `before`. A score is a product with a key, and only
tokens after the image read the cache, so its keys are scaled once, when the last image token is in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest
from qkedit.plugins.core.prefill import Prefill
from qkedit.plugins.core.protocol import RequestEdit
from qkedit.plugins.core.random_controls import check_control, control_generator, random_signs
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.transformers.cache import cache_layer, columns_held
from qkedit.selection import check_layers, select_layers

# Layers 9 to 14 of 32, as shares.
_FIRST, _LAST = 9 / 32, 14 / 32


@dataclass(frozen=True, kw_only=True)
class VAFReport(PluginReport):
    """The report of VAF on one request.

    Attributes:
        layers: the layers in which keys were scaled.
        image_tokens: the number of image-token keys that were scaled per layer, over all prompts.
        tokens_before: the number of keys before the first image that were scaled per layer.
    """

    layers: tuple[int, ...]
    image_tokens: int
    tokens_before: int


@dataclass(frozen=True)
class VAF:
    """Settings of VAF.

    Attributes:
        layers: the decoder layers, such as 9-14; None for 9-14 of 32, and the same shares of other depths.
        image: the factor for scores at image tokens (β in the paper).
        before: the factor for scores at tokens before the first image (α in the paper).
        control: the seed of a matched random control, which multiplies or divides each token's scores by the factor at
            random; None for the method itself.
    """

    name: ClassVar[str] = "vaf"

    layers: str | None = None
    image: float = 1.15
    before: float = 0.95
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_control(self.control, self.name)
        check_layers(self.layers, "vaf layers")
        for option in ("image", "before"):
            if not (math.isfinite(value := getattr(self, option)) and value > 0):
                raise UsageError(f"{value} is not a factor", where=f"vaf {option}", remedy="give one such as 1.15")
            check_largest(self.name, **{option: float(value)})

    def bind(self, modules: VLMModules) -> BoundVAF:
        """Check the settings against a model.

        Raises:
            UsageError: the model does not have these layers.
            UnsupportedForm: the model caps its attention scores, so that scaling keys does not scale them.
        """
        if getattr(modules.text_config, "attn_logit_softcapping", None):
            raise UnsupportedForm(
                "its attention scores are capped, so a scaled key does not scale them", where="vaf", remedy="use SCR"
            )
        count = len(modules.layers)
        chosen = self.layers or f"{round(_FIRST * count)}-{round(_LAST * count)}"
        layers = select_layers(chosen, count, modules.attention_layers, "vaf layers")
        return BoundVAF(layers, self.image, self.before, control_generator(self.control))


@dataclass(frozen=True)
class BoundVAF:
    """VAF on one model."""

    layers: tuple[int, ...]
    image: float
    before: float
    control: torch.Generator | None

    def start(self, prefill: Prefill) -> ScaledKeys:
        """Begin one prefill."""
        return ScaledKeys(self, prefill)


class ScaledKeys(RequestEdit):
    """The edit of one request's cache."""

    def __init__(self, plugin: BoundVAF, prefill: Prefill) -> None:
        self._plugin = plugin
        self.cached_layers = frozenset(plugin.layers)
        self._image = prefill.grids.placeholders
        extents = prefill.grids.extents
        rows = range(prefill.grids.batch)
        self._first = [min((extent.first for extent in extents if extent.row == row), default=0) for row in rows]
        last = [max((extent.last for extent in extents if extent.row == row), default=None) for row in rows]
        self.refine_after = tuple(None if column is None else column + 1 for column in last)
        self._signs = random_signs(tuple(self._image.shape), plugin.control)  # exponents of the factors
        real = prefill.real
        self._before = sum(int(real[row, : self._first[row]].sum()) for row in rows)

    @torch.no_grad()
    def edit_cache(self, cache: Any, rows: tuple[int, ...], length: int) -> None:
        """Scale the keys of `rows` in every chosen layer."""
        for index in self._plugin.layers:
            self.edit_cache_layer(index, cache_layer(cache, index, VAF.name), rows, length)

    def edit_cache_layer(self, index: int, layer: Any, rows: tuple[int, ...], length: int) -> None:
        """Scale the keys of `rows` in one layer; see `RequestEdit`."""
        first, _ = columns_held(layer, length)
        for row in rows:
            factors = torch.ones(length)
            factors[: self._first[row]] = self._plugin.before
            factors[self._image[row, :length]] = self._plugin.image
            held = (factors ** self._signs[row, :length])[first:].to(layer.keys.device)
            keys = layer.keys[row, :, : len(held)]
            keys.copy_((keys.float() * held[:, None]).to(keys.dtype))

    def report(self) -> VAFReport:
        """Return the report."""
        return VAFReport(layers=self._plugin.layers, image_tokens=int(self._image.sum()), tokens_before=self._before)
