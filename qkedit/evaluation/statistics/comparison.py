"""Compare two runs on the same items: each metric's difference with its interval and test, and its cost.

Only items that both runs answered count, so that both are measured on the same images. Right against wrong is tested
with McNemar's exact test, every other metric with the paired cluster bootstrap. The p-values of all metrics that have
a better direction are corrected together with Holm's method, since among many metrics one differs by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.files.records import CaptionItem, Item, MeasuredItem, Score, YesNoItem
from qkedit.evaluation.files.result_files import ScoredRun
from qkedit.evaluation.metric import Better, Metric
from qkedit.evaluation.statistics.doubts import called, doubts
from qkedit.evaluation.statistics.intervals import (
    LEVEL,
    RESAMPLES,
    SEED,
    Difference,
    Interval,
    holm,
    interval,
    mcnemar,
    paired,
)
from qkedit.evaluation.statistics.metrics import metrics_of

# Below this corrected p a difference is called better or worse.
SIGNIFICANT = 0.05
# A loss of this share gets a warning even where chance could explain it.
NOTABLE_LOSS = 0.02


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of two runs.

    Attributes:
        difference: the values, b − a, and its interval and p.
        metric: the metric.
        of_each: the interval of each run's own value.
        p_corrected: p corrected by Holm's method over all tests of the comparison; None without a test or a better
            direction.
    """

    difference: Difference
    metric: Metric
    of_each: tuple[Interval, Interval]
    p_corrected: float | None = None

    @property
    def better(self) -> Better:
        """The better direction."""
        return self.metric.better

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or an empty text where nothing is clear."""
        value = self.difference.value
        if value is None or self.p_corrected is None or self.p_corrected >= SIGNIFICANT:
            return ""
        return "better" if (value < 0) == (self.better is Better.LOWER) else "worse"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        ends = {
            f"{run}_{end}": getattr(found, end)
            for run, found in zip("ab", self.of_each, strict=True)
            for end in ("low", "high")
        }
        extra = {"p_corrected": self.p_corrected, "better": self.better.value, "verdict": self.verdict}
        return asdict(self.difference) | ends | extra


@dataclass(frozen=True)
class ComparedSplit:
    """One split of one benchmark in two runs.

    Attributes:
        benchmark: the benchmark's name.
        split: the split; None for a benchmark without splits.
        rule_kind: `parser` or `variant`.
        rule: the parser or variant that scored both runs.
        n: the number of items that both runs have.
        groups: the number of independent groups among them.
        left_out: the number of items that only the first run has, and that only the second run has.
        metrics: the comparison of each metric.
        warnings: possible costs of a gain.
    """

    benchmark: str
    split: str | None
    rule_kind: str
    rule: str
    n: int
    groups: int
    left_out: tuple[int, int]
    metrics: tuple[ComparedMetric, ...]
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values, with `metrics` that `qkedit gate` can read."""
        figures: dict[str, float | None] = {}
        for compared in self.metrics:
            found = compared.difference
            figures |= {
                f"{found.metric}_difference": found.value,
                f"{found.metric}_difference_low": found.low,
                f"{found.metric}_difference_high": found.high,
                f"{found.metric}_p": found.p,
            }
        return {
            "benchmark": self.benchmark,
            "split": self.split,
            self.rule_kind: self.rule,
            "n": self.n,
            "groups": self.groups,
            "left_out": list(self.left_out),
            "metrics": figures,
            "differences": [compared.as_dict() for compared in self.metrics],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class RunComparison:
    """The comparison of two runs.

    Attributes:
        a: the first run's label: its file, and the plug-ins that acted in it.
        b: the second run's label.
        splits: the comparison of each shared split.
        unmatched: the names of splits that only one run has.
        tests: the number of p-values that were corrected together.
        level: the coverage of the intervals.
        warnings: reasons not to trust the comparison, including those of the splits.
    """

    a: str
    b: str
    splits: tuple[ComparedSplit, ...]
    unmatched: tuple[str, ...]
    tests: int
    level: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "a": self.a,
            "b": self.b,
            "level": self.level,
            "correction": {"method": "holm", "tests": self.tests},
            "unmatched": list(self.unmatched),
            "results": [split.as_dict() for split in self.splits],
        }


def compare(
    a: ScoredRun, b: ScoredRun, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> RunComparison:
    """Compare two runs on the items they share.

    Raises:
        UsageError: the runs share no benchmark, split or item, were scored by different rules, or disagree about the
            ground truth; or a split occurs twice in a file.
        QkeditError: scipy is not installed.
    """
    scores_a, scores_b = _by_name(a), _by_name(b)
    shared = [name for name in scores_a if name in scores_b]
    if not shared:
        raise UsageError(
            f"the runs share no benchmark and split ({_joined(scores_a)} against {_joined(scores_b)})",
            where=f"{a.file}, {b.file}",
            remedy="compare runs of the same benchmark",
        )
    splits = [_compared(scores_a[name], scores_b[name], level, resamples, seed) for name in shared]
    splits, tests = corrected_together(splits)
    unmatched = tuple(_text(name) for name in [*scores_a, *scores_b] if name not in scores_a or name not in scores_b)
    warnings = doubts(a.document.get("run"), b.document.get("run"))
    warnings += [f"{name} is in only one of the runs and was not compared" for name in unmatched]
    for split in splits:
        if any(split.left_out):
            warnings.append(
                f"{split.name}: {split.left_out[0]} items of the first run and {split.left_out[1]} of the second are "
                "not in the other and were left out"
            )
        warnings += split.warnings
    return RunComparison(called(a), called(b), tuple(splits), unmatched, tests, level, tuple(warnings))


_Name = tuple[str, str | None]


def _by_name(run: ScoredRun) -> dict[_Name, Score]:
    scores: dict[_Name, Score] = {}
    for score in run.scores:
        name = (score.benchmark, score.split)
        if name in scores:
            raise UsageError(
                f"holds {_text(name)} twice", where=str(run.file), remedy="score each benchmark and split once"
            )
        scores[name] = score
    return scores


def _compared(a: Score, b: Score, level: float, resamples: int, seed: int) -> ComparedSplit:
    where = _text((a.benchmark, a.split))
    if (a.rule_kind, a.rule) != (b.rule_kind, b.rule):
        raise UsageError(
            f"{a.rule_kind} {a.rule!r} scored the first run, {b.rule_kind} {b.rule!r} the second",
            where=where,
            remedy="score both by the same rules",
        )
    items_a, items_b = _shared_items(a, b, where)
    metrics = []
    # Only metrics that both runs have: some are measured only on request.
    for metric in metrics_of([*items_a, *items_b], a.benchmark).values():
        difference = paired(items_a, items_b, metric, level=level, resamples=resamples, seed=seed)
        if metric.is_share_right and difference.value is not None:
            difference = replace(difference, p=mcnemar(items_a, items_b).p, test="mcnemar")
        of_a, of_b = (
            interval(items, metric, level=level, resamples=resamples, seed=seed) for items in (items_a, items_b)
        )
        metrics.append(ComparedMetric(difference, metric, (of_a, of_b)))
    groups = metrics[0].difference.groups
    left_out = (len(a.items) - len(items_a), len(b.items) - len(items_b))
    warnings = _costs(where, metrics)
    return ComparedSplit(
        a.benchmark, a.split, a.rule_kind, a.rule, len(items_a), groups, left_out, tuple(metrics), warnings
    )


def _shared_items(a: Score, b: Score, where: str) -> tuple[list[Item], list[Item]]:
    of_b = _by_id(b, where)
    shared = [(item, of_b[name]) for name, item in _by_id(a, where).items() if name in of_b]
    if not shared:
        raise UsageError("the runs share no item", where=where, remedy="compare runs on the same questions")
    for one, other in shared:
        if _kind(one) is not _kind(other) or one.truth != other.truth:
            raise UsageError(
                f"the runs do not agree about what is true of item {one.id!r}",
                where=where,
                remedy="score both against the same questions",
            )
    return [one for one, _ in shared], [other for _, other in shared]


def _kind(item: Item) -> type[Item]:
    """Return the kind of an item's judgement, without the benchmark's own additions."""
    return next(kind for kind in (YesNoItem, CaptionItem, MeasuredItem) if isinstance(item, kind))


def _by_id(score: Score, where: str) -> Mapping[str, Item]:
    items = {item.id: item for item in score.items}
    if len(items) < len(score.items):
        raise UsageError("an item occurs twice", where=where, remedy="score each answer once")
    return items


def _costs(where: str, metrics: Sequence[ComparedMetric]) -> tuple[str, ...]:
    """Return a warning if fewer hallucinations come with less information."""
    gains = [one for one in metrics if one.metric.is_hallucination and (one.difference.value or 0) < 0]
    losses = [one for one in metrics if one.metric.loss and _lost(one.difference)]
    if not gains or not losses:
        return ()
    said = " and ".join(f"{one.metric.loss} ({_values(one.difference)})" for one in losses)
    gained = ", ".join(f"{one.metric.name} ({_values(one.difference)})" for one in gains)
    return (f"{where}: the gain in {gained} comes with {said}: saying less is a way to hallucinate less",)


def _lost(found: Difference) -> bool:
    if found.a is None or found.value is None or found.value >= 0:
        return False
    return (found.high is not None and found.high < 0) or -found.value >= NOTABLE_LOSS * found.a


def _values(found: Difference) -> str:
    return f"{found.a:.3g} to {found.b:.3g}"


def corrected_together(splits: Sequence[ComparedSplit]) -> tuple[list[ComparedSplit], int]:
    """Correct the p-values of all metrics with a better direction together."""
    p_values = [
        compared.difference.p if compared.better is not Better.NEITHER else None
        for split in splits
        for compared in split.metrics
    ]
    corrected = iter(holm(p_values))
    done = [
        replace(split, metrics=tuple(replace(compared, p_corrected=next(corrected)) for compared in split.metrics))
        for split in splits
    ]
    return done, sum(p is not None for p in p_values)


def _text(name: _Name) -> str:
    return name[0] if name[1] is None else f"{name[0]}.{name[1]}"


def _joined(names: Mapping[_Name, Score]) -> str:
    return ", ".join(map(_text, names))
