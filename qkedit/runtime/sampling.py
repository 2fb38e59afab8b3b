"""Whether an answer is sampled, decided in one place for every way to ask."""

from __future__ import annotations

# Below this, the likeliest token has all of the probability, and dividing by the temperature may overflow to infinity.
GREEDY_BELOW = 1e-5


def samples(temperature: float | None, by_default: bool) -> bool:
    """Return whether a temperature asks for sampling; one of 0, or next to it, asks for greedy search.

    Args:
        temperature: None if none is given.
        by_default: what holds then.
    """
    return by_default if temperature is None else temperature >= GREEDY_BELOW
