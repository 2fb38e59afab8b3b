"""Describe in words how strong an edit is, by the share of energy it removes; docs/method.md explains the limits."""

from __future__ import annotations

from collections.abc import Sequence

# Shares of the energy ‖M‖² of the edited products, mean over heads. Removing a tenth moves the product by a third of
# its norm (√0.1 = 0.32); beyond a half more is removed than kept.
MARKED, STRONG = 0.1, 0.5


def strength(energy_removed: float) -> str:
    """Return the name of an edit that removes this share (0 to 1) of the energy, such as `a strong edit`."""
    if energy_removed < MARKED:
        return "a mild edit"
    return "a marked edit" if energy_removed < STRONG else "a strong edit"


def energy_sentence(shares: Sequence[float], channel: str) -> str:
    """Return the share of the products' energy that an edit takes, or adds if it is stronger than removal.

    Args:
        shares: removed, per head; negative where energy was added.
        channel: the part of the products that they are of.
    """
    part = "the query-key products" if channel == "full" else f"their {channel} part to be"
    mean = sum(shares) / len(shares)
    if mean < 0:
        added = sorted(-share for share in shares)
        return f"{-mean:.1%} of {part} added ({added[0]:.1%} to {added[-1]:.1%} per head): an edit beyond removal"
    # Of a part of the products no share of the whole is known here.
    proportion = f": {strength(mean)}" if channel == "full" else ""
    return f"{mean:.1%} of {part} removed ({min(shares):.1%} to {max(shares):.1%} per head){proportion}"
