"""The time that answers took, in the form of a benchmark's score, so that runs are compared by it as by any other.

A run writes with each answer its share of the wall time of its batch: reading the images, the processor, the prefill
and the answer, without loading the model. Answers of one batch share one measurement, so they are one group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qkedit.evaluation.files.records import SECONDS, Answer, MeasuredItem, Score
from qkedit.evaluation.metric import Metric, measured

TIME = "time"
"""The name under which times are where others have a benchmark's."""

# Neither direction is better: that more passes take longer is no finding, and a test of it would weaken all others.
TIME_METRICS = (Metric("seconds_per_answer", sums=measured(SECONDS)),)


def times_of(runs: Mapping[str, Sequence[Answer]], task: str) -> dict[str, Score] | None:
    """Return the times of several runs' answers to one task; None if there is no answer with a time in every run.

    Args:
        runs: the answers of each run.
        task: the name of the task, such as `pope.random`.
    """
    seconds = {name: dict(_timed(answers)) for name, answers in runs.items()}
    everywhere = set.intersection(*(set(times) for times in seconds.values()))
    if not everywhere:
        return None
    return {
        name: _score(task, {key: times[key] for key in times if key in everywhere}) for name, times in seconds.items()
    }


def _timed(answers: Sequence[Answer]) -> list[tuple[str, float]]:
    """Return the id and the time of each answer whose file tells it."""
    told = [(answer.id, answer.fields.get(SECONDS)) for answer in answers]
    return [
        (key, float(value))
        for key, value in told
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    ]


def _score(task: str, times: Mapping[str, float]) -> Score:
    # All answers of a batch have the same share of its time.
    items = tuple(
        MeasuredItem(key, {SECONDS: (value, 1)}, group=f"batch of {value!r} s") for key, value in times.items()
    )
    mean = sum(times.values()) / len(times)
    return Score(TIME, task, "wall", len(items), {}, {"seconds_per_answer": mean}, {}, items, rule_kind="clock")
