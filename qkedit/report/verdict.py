"""Summarise a demonstration in one paragraph, with no more certainty than its intervals allow, and a next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.measures import Row

_SWEEP = "other layers, fewer modes or a kept share (--retain): qkedit sweep --out sweep.jsonl"
_MORE = "more scenes narrow the intervals (--scenes 2000); " + _SWEEP
_OWN = "your own model on your own images: qkedit steer MODEL --out EDITED, then qkedit drift EDITED --images DIR"


@dataclass(frozen=True)
class Verdict:
    """The outcome, and the next step."""

    text: str
    next_step: str


def verdict(edited: Row, to_controls: Mapping[str, Difference]) -> Verdict | None:
    """Describe the effect of an edit on hallucination, with its cost and its controls.

    An effect is called clear if the interval of the difference on the same scenes excludes 0.

    Args:
        edited: the edit's figures, each with its difference from the base.
        to_controls: by measure, the edit minus its random controls.

    Returns:
        None if hallucination cannot be measured because no caption mentions an object.
    """
    change, recall = (edited.figures[name].difference for name in ("chair_s", "recall"))
    if change is None or change.value is None:
        return None
    controlled, is_less = to_controls.get("chair_s"), _side(change) < 0
    effects = {
        -1: "the edit hallucinates less",
        0: "no clear effect on hallucination",
        1: "the edit hallucinates more",
    }
    said = [f"{effects[_side(change)]}: {_points('CHAIR_s', change)} against the base"]
    is_own = controlled is not None and _side(controlled) < 0
    if is_less and controlled is not None and controlled.value is not None:
        clearly = "clearly less than" if is_own else "not clearly less than"
        said.append(f"{clearly} with random modes removed instead ({_points('CHAIR_s', controlled)})")
    loses = recall is not None and _side(recall) < 0
    if recall is not None and recall.value is not None and (is_less or loses):
        kept = "more recall" if _side(recall) > 0 else "no clear loss of recall"
        lost = "less recall, and saying less is a way to hallucinate less" if is_less else "less recall"
        said.append(f"{lost if loses else kept} ({_points('recall', recall)})")
    if is_less:
        next_step = _OWN if is_own and not loses else _SWEEP
    else:
        next_step = _SWEEP if loses or _side(change) > 0 else _MORE
    return Verdict("; ".join(said), next_step)


def _side(difference: Difference) -> int:
    """Return 1 or -1 if a difference is clearly above or below 0, else 0."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _points(name: str, difference: Difference) -> str:
    """Format a difference of shares in percentage points: `CHAIR_s -3.2 points [-5.1, -1.2]`."""
    value, low, high = (
        None if one is None else 100 * one for one in (difference.value, difference.low, difference.high)
    )
    interval = "" if low is None or high is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{name} {value:+.1f} points{interval}"
