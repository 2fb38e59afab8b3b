"""Raise the attention of every answer token to the image, in proportion to its own scores: PAI and MiddleLayer.

In some layers, the attention scores a of the prompt's last token and of every answer token are raised at image tokens
before the softmax:

    PAI (arXiv 2407.21771, equation 5)       a + α |a|
    MiddleLayer (arXiv 2411.16724)           a + α · mean over heads |a|
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkedit.errors import UnsupportedForm
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.grid_layouts import image_token
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_weights
from qkedit.plugins.core.random_controls import check_control, control_generator, random_signs
from qkedit.plugins.core.report import PluginReport
from qkedit.selection import check_layers, select_layers


@dataclass(frozen=True, kw_only=True)
class AmplifiedReport(PluginReport):
    """The report on one answer.

    Attributes:
        layers: the layers in which scores were raised.
        image_tokens: the number of columns at which they were raised, over all prompts.
    """

    layers: tuple[int, ...]
    image_tokens: int


@dataclass(frozen=True)
class Amplification:
    """The common settings of both methods."""

    name: ClassVar[str]
    over_heads: ClassVar[bool]

    alpha: float
    layers: str | None = None
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings in themselves. Raises UsageError."""
        check_weights(self.name, alpha=self.alpha)
        check_layers(self.layers, f"{self.name} layers")
        check_control(self.control, self.name)

    def by_default(self, count: int) -> range:
        """Return the layers of a decoder of `count` layers where none are chosen."""
        raise NotImplementedError

    def bind(self, modules: VLMModules) -> BoundAmplifier:
        """Check the settings against a model. Raises UsageError or UnsupportedForm."""
        default = self.by_default(len(modules.layers))
        layers = _layers(self.name, self.layers or f"{default[0]}-{default[-1]}", modules)
        return BoundAmplifier(self.name, layers, self.alpha, self.over_heads, control_generator(self.control))


@dataclass(frozen=True)
class PAIAttention(Amplification):
    """Settings of PAI's attention.

    Attributes:
        alpha: α, the strength.
        layers: the decoder layers; None for all from the third on. Sliding layers are skipped.
        control: the seed of a matched random control, which raises or lowers the scores of each image token at random;
            None for the method itself.
    """

    name: ClassVar[str] = "pai-attention"
    over_heads: ClassVar[bool] = False

    alpha: float = 0.2

    def by_default(self, count: int) -> range:
        """Return all layers from the third on."""
        return range(min(2, count - 1), count)


@dataclass(frozen=True)
class MiddleLayer(Amplification):
    """Settings of MiddleLayer.

    Attributes:
        alpha: α, the strength. The paper chooses it per model; this default is ours.
        layers: the decoder layers; None for 5 to 17 of 32, and the same shares of other depths. Sliding layers are
            skipped.
        control: as in PAIAttention.
    """

    name: ClassVar[str] = "middle-layer"
    over_heads: ClassVar[bool] = True

    alpha: float = 0.5

    def by_default(self, count: int) -> range:
        """Return layers 5 to 17 of 32, or the same shares of another depth."""
        return range(round(5 * count / 32), round(17 * count / 32) + 1)


@dataclass(frozen=True)
class BoundAmplifier:
    """One of the two methods on one model."""

    name: str
    layers: tuple[int, ...]
    alpha: float
    over_heads: bool
    control: torch.Generator | None = None

    def start_decoding(self, generation: Generation) -> RaisedScores:
        """Begin one call of `generate`. Raises UsageError for settings that are not supported."""
        refuse_settings(generation, (*OF_EVERY_STEP, "past_key_values", "inputs_embeds", "use_cache"), self.name)
        return RaisedScores(self, generation)


class RaisedScores(DecodingEdit):
    """The edit of one request's attention scores."""

    def __init__(self, plugin: BoundAmplifier, generation: Generation) -> None:
        self._plugin = plugin
        ids = generation.inputs["input_ids"]
        self._image = ids == image_token(generation.modules.config)
        self._tokens = int(self._image.sum())
        # The share of α by which each column is raised, `[batch, length]`.
        self._share = self._image * random_signs(tuple(ids.shape), plugin.control).to(ids.device)
        self.scored_layers = frozenset(plugin.layers if self._tokens else ())

    def edit_scores(self, layer: int, scores: Tensor) -> Tensor:
        """Return the scores, with those at image tokens raised."""
        size = scores.abs()
        raised = size.mean(dim=1, keepdim=True) if self._plugin.over_heads else size
        # Beams and several answers share the image of their prompt.
        share = self._share.repeat_interleave(len(scores) // len(self._share), dim=0).to(scores)
        edited = scores.clone()
        prompt = edited[..., : share.shape[1]]
        prompt += self._plugin.alpha * (raised.expand_as(scores)[..., : share.shape[1]] * share[:, None])
        return edited

    def report(self) -> AmplifiedReport:
        """Return the report."""
        return AmplifiedReport(
            layers=tuple(sorted(self.scored_layers)),
            image_tokens=self._tokens,
            warnings=() if self._tokens else ("there is no image, so nothing is raised",),
        )


def _layers(name: str, chosen: str, modules: VLMModules) -> tuple[int, ...]:
    """Return the chosen layers that attend to every column.

    Raises:
        UsageError: none of them does.
        UnsupportedForm: the model caps its attention scores.
    """
    if getattr(modules.text_config, "attn_logit_softcapping", None):
        raise UnsupportedForm("its attention scores are capped", where=name, remedy="use another method")
    kinds = getattr(modules.text_config, "layer_types", None) or ["full_attention"] * len(modules.layers)
    full = [layer for layer in modules.attention_layers if kinds[layer] == "full_attention"]
    return select_layers(chosen, len(modules.layers), full, f"{name} layers")
