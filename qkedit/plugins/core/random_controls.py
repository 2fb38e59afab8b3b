"""Matched random controls: the same edit in size, in a random direction.

A method may gain merely because it disturbs the model. A control disturbs it by the same amount at random: if the
method changes logits, its changes go to random tokens; if it scales attention, tokens are scaled up or down at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qkedit.errors import UsageError


def check_control(seed: int | None, name: str) -> None:
    """Raise UsageError unless this is the seed of a control, or None for the method itself."""
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"{seed} is not a seed", where=f"{name} control", remedy="give a number from 0 to 2**63 - 1")


def control_generator(seed: int | None) -> torch.Generator | None:
    """Return the generator of a control, on the CPU for every device; None for the method itself."""
    return None if seed is None else torch.Generator().manual_seed(seed)


def permuted_changes(edited: Tensor, logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return edited logits whose changes are permuted at random among the tokens of a row that are not excluded.

    Args:
        edited: the logits as a method edits them, `[batch, vocabulary]`; −∞ excludes a token.
        logits: the logits before.
        generator: the generator of the control; None returns the edited logits unchanged.
    """
    if generator is None:
        return edited
    changed = edited.clone()
    for row, kept in enumerate(edited.isfinite()):
        tokens = kept.nonzero().flatten()
        order = torch.randperm(len(tokens), generator=generator).to(tokens.device)
        changed[row, tokens] = logits[row, tokens] + (edited - logits)[row, tokens[order]]
    return changed


def random_signs(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return −1 or 1 at random, float32 on the CPU; only 1 without a generator."""
    if generator is None:
        return torch.ones(shape)
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
