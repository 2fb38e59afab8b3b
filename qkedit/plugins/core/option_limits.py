"""The values that plug-in options may have: words that are known, and numbers that do not overflow in a model."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qkedit.errors import UsageError

# Logits and attention scores of up to 65 times as much stay finite even in float16; published weights are below 10.
LARGEST_WEIGHT = 1000.0
# More tokens than any context has, and within the range of every integer type.
LARGEST_COUNT = 10**9


def check_words(settings: Any) -> None:
    """Raise UsageError for an option of a plug-in's settings that is none of the words that its type names."""
    for option, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, option)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise UsageError(
                f"{value!r} is unknown",
                where=f"{settings.name} {option}",
                remedy=f"give {' or '.join(get_args(hint))}",
            )


def check_largest(name: str, **options: float) -> None:
    """Raise UsageError for a weight (a float) or a number of tokens (an int) above the limit."""
    for option, value in options.items():
        largest = LARGEST_COUNT if isinstance(value, int) else LARGEST_WEIGHT
        if value > largest:
            given = value if isinstance(value, float) or value < LARGEST_COUNT**2 else "this number"
            raise UsageError(f"{given} is too large", where=f"{name} {option}", remedy=f"give at most {largest:.0f}")


def check_weights(name: str, **options: float) -> None:
    """Raise UsageError for a weight that is not a number, negative, or above the limit."""
    for option, value in options.items():
        if not value >= 0:
            fact = "is not a number" if math.isnan(value) else "is negative"
            raise UsageError(f"{value} {fact}", where=f"{name} {option}", remedy="give 0 or more")
        check_largest(name, **{option: float(value)})
