"""Describe in words how strong an edit is, by the share of energy it removes; docs/method.md explains the limits."""

from __future__ import annotations

# Shares of the energy ‖M‖² of the edited products, mean over heads. Removing a tenth moves the product by a third of
# its norm (√0.1 = 0.32); beyond a half more is removed than kept.
MARKED, STRONG = 0.1, 0.5


def strength(energy_removed: float) -> str:
    """Return the name of an edit that removes this share (0 to 1) of the energy, such as `a strong edit`."""
    if energy_removed < MARKED:
        return "a mild edit"
    return "a marked edit" if energy_removed < STRONG else "a strong edit"
