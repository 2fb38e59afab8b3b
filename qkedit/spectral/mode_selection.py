"""Figures of a spectrum in any channel: energy, gaps, effective rank, the number of modes for a share of energy."""

from __future__ import annotations

import torch
from torch import Tensor


def rank(values: Tensor, floor: Tensor) -> Tensor:
    """Return, per head `[H]`, the number of `values` `[H, n]` that exceed the head's `floor` `[H]`."""
    return (values > floor.unsqueeze(-1)).sum(-1)


def energy(values: Tensor) -> Tensor:
    """Return each mode's share of `Σσ²`, `[H, n]`; zero for a head whose values are all zero."""
    squares = values.square()
    return squares / squares.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def top_energy(values: Tensor, counts: Tensor) -> Tensor:
    """Return the share of the energy that the first `counts` `[H]` modes carry, `[H]`."""
    first = torch.arange(values.shape[-1], device=values.device) < counts.unsqueeze(-1)
    return torch.where(first, energy(values), 0.0).sum(-1)


def modes_for_energy(values: Tensor, share: float) -> Tensor:
    """Return, per head `[H]`, the smallest k whose top-k modes of `values` `[H, n]` carry `share` of the energy."""
    # The shares add up to 1 only within rounding, so a request for all of the energy must not select one mode more.
    reached = energy(values).cumsum(-1) >= share - 1e-12
    return torch.where(reached.any(-1), reached.int().argmax(-1) + 1, values.shape[-1])


def gap(values: Tensor, counts: Tensor, ranks: Tensor) -> Tensor:
    """Return `σ_k / σ_{k+1}` at the cut, `[H]`, for k = `counts`; NaN where no mode is cut or none remains.

    Near 1 the single modes are arbitrary: any rotation among near-equal ones is as good.
    """
    last = values.gather(-1, (counts - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
    following = values.gather(-1, counts.clamp_max(values.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    undefined = (counts == 0) | (counts >= ranks)
    return torch.where(undefined, torch.nan, last / following)


def effective_rank(values: Tensor) -> Tensor:
    """Return `exp(entropy(σ² / Σσ²))`, `[H]`: the number of equal modes with that entropy; 0 for a zero head."""
    shares = energy(values)
    entropy = torch.special.entr(shares).sum(-1)
    return torch.where(values[..., 0] > 0, entropy.exp(), torch.zeros_like(entropy))
