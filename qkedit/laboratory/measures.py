"""The measures of an arm: every figure with its interval, and its difference from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qkedit.demo.questions import SPLITS
from qkedit.evaluation.files.records import Item, Score
from qkedit.evaluation.metric import Better, Meaning, Metric, Unit
from qkedit.evaluation.statistics.intervals import Difference, Interval, holm, interval, paired
from qkedit.evaluation.statistics.metrics import meaning_of, metrics_of
from qkedit.laboratory.arms import Arm

CAPTIONS = "captions"
QUALITY = "quality"
# Resamples per interval; more would not change the two or three digits shown.
RESAMPLES = 2_000


@dataclass(frozen=True)
class Measure:
    """One measure of an arm.

    Attributes:
        name: the name, such as `chair_s` or `f1_adversarial`.
        part: the part of the evaluation set: `captions`, their `quality`, or a split of the questions.
        metric: its name among the metrics of the part's items.
        title: the title for people.
        benchmark: the benchmark that has the metric.
    """

    name: str
    part: str
    metric: str
    title: str
    benchmark: str = "custom"

    @property
    def meaning(self) -> Meaning:
        """The direction and the unit of the metric."""
        return meaning_of(self.benchmark, self.metric)

    @property
    def better(self) -> Better:
        """The better direction."""
        return self.meaning.better

    @property
    def is_share(self) -> bool:
        """True if it is a ratio from 0 to 1, to be shown in percent."""
        return self.meaning.unit is Unit.SHARE

    @property
    def scale(self) -> int:
        """The factor from a figure to what is shown."""
        return 100 if self.meaning.unit in (Unit.SHARE, Unit.HUNDREDTHS) else 1

    def metric_of(self, items: Sequence[Item]) -> Metric:
        """Return the metric, as these items of its part have it."""
        return metrics_of(items, self.benchmark)[self.metric]


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("chair_s", CAPTIONS, "chair_s", "CHAIR_s"),
        Measure("chair_i", CAPTIONS, "chair_i", "CHAIR_i"),
        Measure("recall", CAPTIONS, "recall", "recall"),
        Measure("mean_words", CAPTIONS, "mean_words", "words"),
        Measure("cider", QUALITY, "cider", "CIDEr (words, not PTB tokens)", "coco-caption"),
        *(
            Measure(f"{metric}_{split}", split, metric, title)
            for split in SPLITS
            for metric, title in (("accuracy", "accuracy"), ("f1", "F1"), ("hr", "HR"))
        ),
    )
}


@dataclass(frozen=True)
class Outcome:
    """One arm's scores, by part of the evaluation set, and the cost of its edit and its answers."""

    arm: Arm
    scores: Mapping[str, Score]
    seconds: float
    energy_removed: float | None = None
    relative_change: float | None = None

    def value(self, measure: Measure) -> float | None:
        """Return the value of a measure; None if its denominator is zero.

        It is computed from the items, like intervals: F1 is 2tp / (2tp + fp + fn), which is defined without positives.
        """
        items = self.scores[measure.part].items
        return measure.metric_of(items).value_of(items)


@dataclass(frozen=True)
class Figure:
    """One measure of an arm, or of all repetitions of an arm.

    Attributes:
        interval: the value and its interval; repetitions are pooled, scene by scene.
        least: the lowest value of a repetition; None for an arm without repetitions.
        most: the highest value of a repetition.
        difference: this arm minus the base on the same scenes; None for the base itself.
        p_holm: the p value, corrected for the number of arms compared with the base by this measure.
    """

    interval: Interval
    least: float | None = None
    most: float | None = None
    difference: Difference | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of a comparison: an arm, or a control's repetitions with several seeds."""

    name: str
    arms: tuple[Arm, ...]
    figures: Mapping[str, Figure]
    energy_removed: float | None
    relative_change: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as `--json` prints it."""
        return {
            "name": self.name,
            "arms": [arm.as_dict() for arm in self.arms],
            "energy_removed": self.energy_removed,
            "relative_change": self.relative_change,
            "measures": {name: asdict(figure) for name, figure in self.figures.items()},
        }


def compare(outcomes: Sequence[Outcome], base: Outcome, measures: Sequence[Measure] | None = None) -> tuple[Row, ...]:
    """Return one row per group of arms, in the order of their first appearance, compared with the base.

    Args:
        outcomes: the outcomes of all arms, with or without the base.
        base: the outcome of the base.
        measures: the measures to include; by default all.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.arm.group, []).append(outcome)
    measures = tuple(MEASURES.values()) if measures is None else tuple(measures)
    figures: dict[str, dict[str, Figure]] = {name: {} for name in groups}
    for measure in measures:
        column = {name: figure(group, base, measure) for name, group in groups.items()}
        corrected = holm([one.difference.p if one.difference else None for one in column.values()])
        for (name, one), p in zip(column.items(), corrected, strict=True):
            figures[name][measure.name] = replace(one, p_holm=p)
    return tuple(
        Row(
            name,
            tuple(outcome.arm for outcome in group),
            figures[name],
            _mean([outcome.energy_removed for outcome in group]),
            _mean([outcome.relative_change for outcome in group]),
        )
        for name, group in groups.items()
    )


def figure(group: Sequence[Outcome], base: Outcome, measure: Measure) -> Figure:
    """Return a measure of an arm's pooled repetitions, and its difference from the base."""
    values = [value for outcome in group if (value := outcome.value(measure)) is not None]
    repeated = len(group) > 1 and values
    own = pooled(group, measure.part)
    return Figure(
        # Always the bootstrap: it handles pooled seeds and shares in the same way, and needs only numpy.
        interval(own, measure.metric_of(own), method="bootstrap", resamples=RESAMPLES),
        min(values) if repeated else None,
        max(values) if repeated else None,
        None if group[0].arm == base.arm else contrast([base] * len(group), group, measure),
    )


def against(outcome: Outcome, controls: Sequence[Outcome], measure: Measure) -> Difference:
    """Return the difference of an arm from its controls, with all seeds pooled: the arm minus the controls."""
    return contrast(controls, [outcome] * len(controls), measure)


def contrast(before: Sequence[Outcome], after: Sequence[Outcome], measure: Measure) -> Difference:
    """Return the difference of two equally large groups of arms on the same scenes, pooled: after minus before."""
    first, second = pooled(before, measure.part), pooled(after, measure.part)
    return paired(first, second, measure.metric_of(first), resamples=RESAMPLES)


def improves(measure: Measure, difference: Difference | None) -> bool | None:
    """Return whether a difference is an improvement; None where that is undecided.

    It is decided if the interval excludes zero and the measure has a better direction.
    """
    if difference is None or difference.low is None or difference.high is None or measure.better is Better.NEITHER:
        return None
    if difference.low <= 0 <= difference.high:
        return None
    return (difference.low > 0) == (measure.better is Better.HIGHER)


def pooled(outcomes: Sequence[Outcome], part: str) -> list[Item]:
    """Pool the items of several arms, so that each scene contributes the items of all of them.

    Resampling draws scenes and keeps the seeds; `least` and `most` show the variation between seeds.
    """
    return [
        replace(item, id=f"{number}/{item.id}")
        for number, outcome in enumerate(outcomes)
        for item in outcome.scores[part].items
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
