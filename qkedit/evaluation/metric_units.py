"""What a metric's figures mean: which direction is better, and whether they are shares or percentages."""

from __future__ import annotations

from enum import Enum


class Better(Enum):
    """Which direction of a metric a user wants."""

    HIGHER = "higher"
    LOWER = "lower"
    # It describes the answers; neither more nor less of it is an aim.
    NEITHER = "neither"


_BETTER = {
    Better.LOWER: ("hr", "chair_s", "chair_i", "chair", "hal", "cog", "kl", "kl_worst"),
    Better.HIGHER: (
        *("accuracy", "precision", "recall", "f1"),
        *("acc", "acc_plus", "score", "cover", "a_acc", "f_acc", "q_acc", "easy_acc", "hard_acc"),
        *("agreement", "overlap", "identical"),
    ),
}
_SHARES = frozenset(
    (
        *("accuracy", "precision", "recall", "f1", "yes_ratio", "hr", "chair_s", "chair_i"),
        *("acc", "acc_plus", "chair", "cover", "hal", "cog", "a_acc", "f_acc", "q_acc", "easy_acc", "hard_acc"),
        *("agreement", "overlap", "identical"),
    )
)
# Whose figures are percentages instead, as its own script prints them.
IN_PERCENT = frozenset(("amber",))
_DIRECTION = {name: direction for direction, names in _BETTER.items() for name in names}


def better(name: str) -> Better:
    """Return which direction of a metric is better, by its plain name."""
    return _DIRECTION.get(name, Better.NEITHER)


def is_share(benchmark: str, name: str) -> bool:
    """Return whether a benchmark's metric, by its plain name, is a share from 0 to 1."""
    return name in _SHARES and benchmark not in IN_PERCENT


def is_percentage(benchmark: str, name: str) -> bool:
    """Return whether a benchmark's metric, by its plain name, is a share given in percent."""
    return name in _SHARES and benchmark in IN_PERCENT
