"""Decide in one place whether an answer is sampled."""

from __future__ import annotations

# Below this, the likeliest token has all the probability, and a division by the temperature may overflow to infinity.
GREEDY_BELOW = 1e-5


def samples(temperature: float | None, by_default: bool) -> bool:
    """Return whether a temperature means sampling; 0 or nearly 0 means greedy search.

    Args:
        temperature: the temperature, or None.
        by_default: the result without a temperature.
    """
    return by_default if temperature is None else temperature >= GREEDY_BELOW
