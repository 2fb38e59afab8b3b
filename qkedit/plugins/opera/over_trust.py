"""The over-trust of answers: how much their tokens look at one earlier token of the answer.

With ω the last layer's attention, its largest value over the heads, each row divided by its sum, the columns of an
answer have the products

    P_c = Π_{i ≥ c} σ ω_{i,c}        over the rows i of the answer, the token's own included
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# By how much the published code multiplies the products, and the largest number of the half precision that holds them.
_UNIT = 1e-7
_LARGEST = 65504.0


@dataclass(frozen=True)
class OverTrust:
    """The products of the columns of some answers of the same length, on the CPU.

    Attributes:
        log_products: log P_c, `[rows, tokens]` float64.
        image_share: how much of the last token's attention is at images, `[rows]` float64.
    """

    log_products: Tensor
    image_share: Tensor

    @classmethod
    def first(cls, rows: int) -> OverTrust:
        """Return those of answers without a token."""
        empty = torch.zeros(rows, 0, dtype=torch.float64)
        return cls(empty, empty.new_zeros(rows))

    def selected(self, rows: Tensor) -> OverTrust:
        """Return those of the answers of these indices."""
        rows = rows.cpu()
        return OverTrust(self.log_products[rows], self.image_share[rows])

    def after(self, shares: Tensor, image: Tensor, scale: float) -> OverTrust:
        """Return those of the answers with one token more.

        Args:
            shares: the attention of the new token, `[rows, heads, columns]`; the columns are the text's last ones.
            image: which columns of the prompt are image tokens, `[length]` bool on the CPU.
            scale: σ.
        """
        rows, length = self.log_products.shape
        widest = shares.amax(dim=1).cpu().double()
        widest = widest / widest.sum(dim=-1, keepdim=True)
        # A sliding layer has forgotten the first columns.
        whole = widest.new_zeros(rows, image.numel() + length + 1)
        whole[:, -widest.shape[1] :] = widest
        prompt, answer = whole.split([image.numel(), length + 1], dim=1)
        own = torch.cat([self.log_products, self.log_products.new_zeros(rows, 1)], dim=1)
        return OverTrust(own + (scale * answer).log(), prompt[:, image].sum(dim=1))

    def penalty(self) -> Tensor:
        """Return 10⁻⁷ of the largest product of each answer, at most 65504, `[rows]` float64."""
        return (_UNIT * self.log_products.amax(dim=1).exp()).clamp(max=_LARGEST)

    def locations(self) -> Tensor:
        """Return the column of the largest product of each answer, `[rows]`."""
        return self.log_products.argmax(dim=1)
