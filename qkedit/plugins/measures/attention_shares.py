"""Measure how much the tokens of an answer attend to the image, to the prompt before and after it, and to the answer.

The attention of a token of the answer is that of the forward pass that chose it: the last row, as `generate` returns
it with `output_attentions=True`, mean over heads. The columns of a prompt are divided into groups:

    first      its first column, which attracts attention whatever it holds (a "sink", arXiv 2309.17453)
    before     the others before the first image token
    image      image tokens
    behind     the rest of the prompt, also between two images
    generated  the answer so far

The five add up to 1. Layers with linear attention have no rows, and a sliding layer sees the columns of its window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkedit.errors import QkeditError, UsageError
from qkedit.plugins.core.decoding import DecodingEdit, Generation
from qkedit.plugins.core.generation_limits import OF_EVERY_STEP, refuse_settings
from qkedit.plugins.core.grid_layouts import image_token
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.transformers.spans import real_tokens

GROUPS = ("first", "before", "image", "behind", "generated")
FIRST, BEFORE, IMAGE, BEHIND, GENERATED = range(len(GROUPS))
_REFUSED = (*OF_EVERY_STEP, "num_beams", "num_return_sequences", "past_key_values", "inputs_embeds")


@dataclass(frozen=True, kw_only=True)
class SharesReport(PluginReport):
    """The attention of the tokens of one call of `generate`.

    Attributes:
        layers: the layers that were measured, ascending.
        shares: `[batch, tokens, layers, groups]` float32 on the CPU. Rows that ended early have further tokens, which
            are padding.
        image_first: for each row, whether its first column is an image token.
    """

    layers: tuple[int, ...]
    shares: Tensor
    image_first: tuple[bool, ...]


class AttentionShares:
    """A plug-in that only measures attention; attach it as the last one, so that it measures the others' edits too."""

    name: ClassVar[str] = "attention"

    def bind(self, parts: VLMModules) -> AttentionShares:
        """Accept any model."""
        return self

    def start_decoding(self, generation: Generation) -> _Measurement:
        """Measure one call of `generate`. Raises UsageError for settings that it cannot follow."""
        refuse_settings(generation, _REFUSED, self.name)
        return _Measurement(generation)


class _Measurement(DecodingEdit):
    def __init__(self, generation: Generation) -> None:
        ids = generation.inputs["input_ids"].cpu()
        real = real_tokens(generation.inputs.get("attention_mask"), *ids.shape)
        is_image = ids == image_token(generation.modules.config)
        first = real.int().argmax(dim=1, keepdim=True)
        self._groups = torch.where(is_image.cumsum(dim=1) > 0, BEHIND, BEFORE).masked_fill(is_image, IMAGE)
        self._groups.scatter_(1, first, FIRST)
        self._image_first = tuple(is_image.gather(1, first).flatten().tolist())
        self._layers = generation.modules.attention_layers
        self._of_pass: dict[int, Tensor] = {}
        self._of_tokens: list[Tensor] = []
        self.watched_layers = frozenset(self._layers)

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Add up the attention of each group, mean over heads."""
        columns, tokens = shares.shape[-1], len(self._of_tokens)
        if columns > self._groups.shape[1] + tokens:
            raise UsageError(
                "attention cannot be measured in a cache of a fixed size",
                where="cache",
                remedy="leave it to the model",
            )
        groups = torch.nn.functional.pad(self._groups, (0, tokens), value=GENERATED)[:, -columns:].to(shares.device)
        sums = shares.new_zeros(shares.shape[0], len(GROUPS))
        self._of_pass[layer] = sums.scatter_add_(1, groups, shares.mean(dim=1))

    def edit_logits(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        """Store the attention of the forward pass, and return the logits unchanged."""
        missing = [layer for layer in self._layers if layer not in self._of_pass]
        if missing:
            raise QkeditError(
                f"the attention of layer {missing[0]} cannot be read", where="model", remedy="report the model's name"
            )
        self._of_tokens.append(torch.stack([self._of_pass.pop(layer).cpu() for layer in self._layers], dim=1))
        return logits

    def report(self) -> SharesReport:
        """Return the attention of every token."""
        return SharesReport(
            layers=self._layers, shares=torch.stack(self._of_tokens, dim=1), image_first=self._image_first
        )
