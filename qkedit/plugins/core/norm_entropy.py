"""The entropy of the norms of image tokens' states (SCR, arXiv 2602.22469), used only for analysis."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_entropy(norms: Tensor) -> Tensor:
    """Return `−Σ p log p` with `p = c / Σc`, in nats, of norms `c = ‖h_i‖`, `[…, N]`; float64 on the CPU."""
    lengths = norms.cpu().double()  # not every device supports float64
    shares = lengths / lengths.sum(-1, keepdim=True)
    return -torch.special.xlogy(shares, shares).sum(-1)
