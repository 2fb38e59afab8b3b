"""The metrics of `drift`."""

from __future__ import annotations

import re
from collections import Counter

from qkedit.evaluation.metric import Better, Meaning, Unit

DRIFT = "drift"
"""The value of `benchmark` in its results."""

DRIFT_METRICS = (
    Meaning("kl", Better.LOWER),  # nats
    Meaning("kl_worst", Better.LOWER),
    Meaning("agreement", Better.HIGHER, Unit.SHARE),
    Meaning("overlap", Better.HIGHER, Unit.SHARE),
    Meaning("identical", Better.HIGHER, Unit.SHARE),
)

_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def word_f1(one: str, other: str) -> float:
    """Return the F1 of the words that two texts share, counting repeats and ignoring case; 1 for two empty texts."""
    first, second = (Counter(_WORDS.findall(text.lower())) for text in (one, other))
    if not first and not second:
        return 1.0
    return 2 * (first & second).total() / (first.total() + second.total())
