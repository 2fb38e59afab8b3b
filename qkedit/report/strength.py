"""Put the share of energy that an edit removes into proportion; docs/method.md explains the limits."""

from __future__ import annotations

# Of the energy ‖M‖² of the edited products, mean over heads. Where a tenth is removed the product moves by a third of
# its norm (√0.1 = 0.32), and from a half on more is gone than is left.
MARKED, STRONG = 0.1, 0.5


def strength(energy_removed: float) -> str:
    """Return what to call an edit that removes this share (0 to 1) of the energy: `a strong edit`."""
    if energy_removed < MARKED:
        return "a mild edit"
    return "a marked edit" if energy_removed < STRONG else "a strong edit"
