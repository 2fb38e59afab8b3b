"""SID's selection: keep the image tokens that the last token attends to least, and hide the others.

(Self-Introspective Decoding, arXiv 2408.02032; as in its published code, the attention is the mean over heads in the
layer before the first one that hides tokens, and the choice is made anew for every token of an answer.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qkedit.errors import UnsupportedForm, UsageError
from qkedit.plugins.core.decoding import AttentionEdit, Generation
from qkedit.plugins.core.grid_layouts import image_token
from qkedit.plugins.core.modules import VLMModules
from qkedit.plugins.core.option_limits import check_largest


def check_keep(keep: float, name: str) -> None:
    """Raise UsageError unless this is a number of image tokens, or a share of them below 1."""
    if isinstance(keep, int) or (math.isfinite(keep) and keep >= 1):
        check_largest(name, keep=int(keep))
    if not (math.isfinite(keep) and keep > 0 and (keep < 1 or keep == int(keep))):
        raise UsageError(
            f"{keep} is neither a number of tokens nor a share", where=f"{name} keep", remedy="give 100 or 0.25"
        )


def check_selection(modules: VLMModules, start: int, name: str) -> None:
    """Check that a model's image tokens can be hidden from its layers.

    Raises:
        UsageError: it has no layer `start`.
        UnsupportedForm: some of its layers do not compute attention, so hidden tokens would have an effect in them.
    """
    if start >= len(modules.layers):
        raise UsageError(
            f"the model has {len(modules.layers)} layers, counted from 0",
            where=f"{name} start",
            remedy="give a smaller number, such as 2",
        )
    if len(modules.attention_layers) < len(modules.layers):
        raise UnsupportedForm(
            "some of its layers are not attention, so image tokens cannot be hidden from them",
            where=name,
            remedy="use another contrast, such as vcd",
        )


class LeastAttended(AttentionEdit):
    """The selection for one answer.

    Args:
        generation: the call of `generate`.
        keep: the number of image tokens per prompt that stay, or their share if it is below 1; at least one stays.
        start: the first layer that hides the others.
        name: the plug-in's name, for messages.
    """

    def __init__(self, generation: Generation, keep: float, start: int, name: str) -> None:
        self._name = name
        ids: Tensor = generation.inputs["input_ids"]
        self._image = ids == image_token(generation.modules.config)
        counts = self._image.sum(dim=1)
        self._keep = (counts * keep).round().long().clamp(min=1) if keep < 1 else torch.full_like(counts, int(keep))
        self._columns = 0  # of prompt and answer so far
        self._hidden = torch.zeros_like(self._image)
        self.watched_layers = frozenset({start - 1})
        self.masked_layers = frozenset(range(start, len(generation.modules.layers)))
        self.warnings: tuple[str, ...] = ()
        if bool((self._keep >= counts).all()):
            self.warnings = (
                f"the {int(counts.max())} image tokens are all kept, so the branch is the model itself; lower keep",
            )

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Store the attention of the last token, `[batch, columns]`."""
        self._attention = shares.mean(dim=1)

    def hidden_columns(self, layer: int, tokens: int, columns: int) -> Tensor:
        """Return the image tokens that are not kept; they are chosen in the first layer that hides any."""
        if layer == min(self.masked_layers):
            self._choose(tokens)
        answer = self._hidden.new_zeros(len(self._hidden), self._columns - self._hidden.shape[1])
        return torch.cat([self._hidden, answer], dim=1)[:, -columns:]

    def _choose(self, tokens: int) -> None:
        prompt = self._image.shape[1]
        if tokens == prompt:  # maybe a second time, if another plug-in has looked ahead
            self._columns = prompt
        elif tokens == 1 and self._columns > 0:
            self._columns += 1
        else:
            raise UsageError(
                f"{self._name} cannot act: another plug-in runs the prompt in parts",
                where="plug-ins",
                remedy=f"attach {self._name} without vaf and dscr",
            )
        mean = self._attention
        attention = mean.new_zeros(len(mean), self._columns)
        attention[:, self._columns - mean.shape[1] :] = mean  # a sliding layer holds the last columns alone
        image = self._image.to(mean.device)
        order = attention[:, :prompt].masked_fill(~image, torch.inf).argsort(dim=1, stable=True)
        self._hidden = image & (order.argsort(dim=1) >= self._keep.to(mean.device)[:, None])
