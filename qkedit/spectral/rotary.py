"""Rotary positions as matrices: the rotation between queries and keys that are some positions apart.

A rotary embedding turns each pair j of a head's dimensions by the angle `p · θ_j` at position p (RoFormer,
arXiv 2104.09864). A query at position p and a key at p − n then meet with a rotation in between:

    (R_p q)ᵀ (R_{p−n} k) = qᵀ R_nᵀ k,        M_n = W_qᵀ R_nᵀ W_k = (R_n W_q)ᵀ W_k.

With multimodal positions (M-RoPE, Qwen2-VL, arXiv 2409.12191) each pair belongs to one of time, row and column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The parts of a multimodal position, in the order of the models.
AXES = ("temporal", "height", "width")


@dataclass(frozen=True)
class RotaryPositions:
    """The rotation of one layer's heads; dimensions beyond the last pair are not rotated.

    Attributes:
        head_size: d_h.
        frequencies: θ_j of each pair, in radians per position.
        adjacent: whether pair j is dimensions (2j, 2j + 1); otherwise it is (j, j + number of pairs).
        axes: for each pair the one of `AXES` that turns it; empty where there is only one position.
    """

    head_size: int
    frequencies: tuple[float, ...]
    adjacent: bool = False
    axes: tuple[int, ...] = ()

    def rotation(self, offset: tuple[int, int, int]) -> Tensor:
        """Return `R_n`, float64 `[d_h, d_h]`, for the offset n = query − key position along `AXES`.

        Where there is only one position, it is the temporal part of the offset.
        """
        pairs = len(self.frequencies)
        axes = torch.tensor(self.axes or (0,) * pairs, dtype=torch.long)
        steps = torch.tensor(offset, dtype=torch.float64)[axes]
        angles = steps * torch.tensor(self.frequencies, dtype=torch.float64)
        first = torch.arange(pairs)
        first, second = (2 * first, 2 * first + 1) if self.adjacent else (first, first + pairs)
        matrix = torch.eye(self.head_size, dtype=torch.float64)
        matrix[first, first] = matrix[second, second] = angles.cos()
        matrix[first, second] = -angles.sin()
        matrix[second, first] = angles.sin()
        return matrix
