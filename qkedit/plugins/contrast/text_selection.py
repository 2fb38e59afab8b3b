"""CRoPS's selection: keep the text tokens that the last token attends to least, and hide the others.

(arXiv 2601.00659; as in its published code, the attention is the mean over heads in the layer before the first one
that hides tokens; the choice is made anew for every token of an answer, and includes the answer's own tokens.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qkedit.plugins.core.decoding import AttentionEdit


class LeastAttendedText(AttentionEdit):
    """The selection in a branch without images, for one answer.

    Args:
        mask: which columns of the branch's prompts are not padding, `[batch, length]`.
        keep: the number of tokens per prompt that stay, by the number of the answer's token, counted from 1.
        start: the first layer that hides the others.
        layers: the number of decoder layers.
    """

    def __init__(self, mask: Tensor, keep: Callable[[int], int], start: int, layers: int) -> None:
        self._real = mask.bool()
        self._started = False
        self._prompt = mask.shape[1]
        self._keep = keep
        self._hidden = torch.zeros_like(self._real)
        self.watched_layers = frozenset({start - 1})
        self.masked_layers = frozenset(range(start, layers))

    def watch_attention(self, layer: int, shares: Tensor) -> None:
        """Choose the tokens to hide by the attention of the last token."""
        mean = shares.mean(dim=1)
        if self._started:
            self._real = torch.cat([self._real, self._real.new_ones(len(self._real), 1)], dim=1)
        self._started, columns = True, self._real.shape[1]
        attention = mean.new_zeros(len(mean), columns)
        attention[:, columns - mean.shape[1] :] = mean  # a sliding layer holds the last columns alone
        real = self._real.to(mean.device)
        rank = attention.masked_fill(~real, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        self._hidden = real & (rank >= self._keep(columns - self._prompt + 1))

    def hidden_columns(self, layer: int, tokens: int, columns: int) -> Tensor:
        """Return the tokens that are not kept."""
        return self._hidden[:, -columns:]
