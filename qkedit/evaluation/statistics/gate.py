"""Requirements on a result, for a pipeline that must not ship a worse model.

    requirement = path ("<=" | ">=" | "<" | ">") number          chair_s<=0.40, pope.adversarial.f1>=0.80
    no worse    = path ":" number                                recall:0.02
    path        = [benchmark "."] [split "."] metric

Numbers are in the metric's own unit: shares from 0 to 1, MME's scores in points, AMBER's figures in percent. A path
must mean one figure; each metric defines its worse direction. A baseline must be measured on the same questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.result_files import Measured
from qkedit.evaluation.metric import Better, Unit
from qkedit.evaluation.statistics.guard import NUMBER, Guard, finite, loss
from qkedit.evaluation.statistics.metrics import meaning_of

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {"<=": le, ">=": ge, "<": lt, ">": gt}
# CIDEr is never above 10, so a tolerance of more than 0.1 was most likely given in points.
_LARGEST_HUNDREDTHS, LARGEST_LOSS = 10, 0.1
_REQUIREMENT = re.compile(rf"\s*([^\s<>=:]+)\s*(<=|>=|<|>)\s*({NUMBER})\s*")


@dataclass(frozen=True)
class Requirement:
    """A limit on one figure: `pope.adversarial.f1>=0.80`."""

    path: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        """Return the requirement in the format of `--require`."""
        return f"{self.path}{self.comparison}{self.limit!r}"


@dataclass(frozen=True)
class Check:
    """The outcome of one requirement.

    Attributes:
        requirement: the requirement, as given.
        path: the figure's full name.
        value: the figure's value; None if it has none, and then the check fails.
        baseline: the same figure in the baseline; None without a baseline.
        passed: whether the requirement is met.
    """

    requirement: str
    path: str
    value: float | None
    baseline: float | None
    passed: bool

    def __str__(self) -> str:
        """Return the finding as one line."""
        value = "has no value" if self.value is None else f"is {self.value:.6g}"
        baseline = "" if self.baseline is None else f" against {self.baseline:.6g} in the baseline"
        return f"{'ok    ' if self.passed else 'FAILED'}  {self.requirement}: {self.path} {value}{baseline}"


def parse_requirement(text: str) -> Requirement:
    """Parse a requirement such as `chair_s<=0.40`. Raises UsageError."""
    matched = _REQUIREMENT.fullmatch(text)
    if matched is None:
        raise UsageError(
            f"{text!r} is not a requirement",
            where="--require",
            remedy="write one as chair_s<=0.40 or pope.random.f1>=0.8",
        )
    return Requirement(matched[1], matched[2], finite(matched[3], "--require"))


def gate(
    result: Sequence[Measured],
    requirements: Iterable[Requirement] = (),
    no_worse: Iterable[Guard] = (),
    baseline: Sequence[Measured] = (),
) -> tuple[Check, ...]:
    """Check a result against requirements; a figure without a value or without answers meets none.

    Raises:
        UsageError: a path means no figure or several, a metric has no direction that is worse, a limit is not in the
            metric's unit, or the baseline was scored by other rules or on other questions.
    """
    checks = []
    for requirement in requirements:
        measured, metric = _found(result, requirement.path, "the result")
        _check_unit(measured, metric, requirement.limit, str(requirement))
        value = _value(measured, metric)
        passed = value is not None and COMPARISONS[requirement.comparison](value, requirement.limit)
        checks.append(Check(str(requirement), f"{measured.name}.{metric}", value, None, passed))
    for wanted in no_worse:
        measured, metric = _found(result, wanted.path, "the result")
        path = f"{measured.name}.{metric}"
        before, _ = _found(baseline, path, "the baseline")
        if before.rule != measured.rule:
            raise UsageError(
                f"the baseline was scored by {before.rule!r}, the result by {measured.rule!r}",
                where=path,
                remedy="score both by the same rules",
            )
        _check_questions(before, measured, path)
        _check_unit(measured, metric, wanted.tolerance, str(wanted), is_difference=True)
        value, base = _value(measured, metric), _value(before, metric)
        lost = loss(_direction(measured, metric), value, base)
        checks.append(Check(str(wanted), path, value, base, wanted.is_kept(lost)))
    return tuple(checks)


def _direction(measured: Measured, metric: str) -> Better:
    """Return the better direction of a figure. Raises UsageError if it has none."""
    better = meaning_of(measured.benchmark, metric).better
    if better is Better.NEITHER:
        raise UsageError(
            "neither direction of it is worse",
            where=metric,
            remedy="set a limit with --require, as in mean_words>=80",
        )
    return better


def _found(results: Sequence[Measured], path: str, where: str) -> tuple[Measured, str]:
    """Return the figure for a path: its full name, or a shorter one that matches nothing else."""
    figures = [(measured, metric) for measured in results for metric in measured.metrics]
    full = [figure for figure in figures if f"{figure[0].name}.{figure[1]}" == path]
    fitting = full or [figure for figure in figures if path in _short_names(*figure)]
    if len(fitting) == 1:
        return fitting[0]
    names = [f"{measured.name}.{metric}" for measured, metric in fitting or figures]
    if not fitting:
        raise UsageError(
            f"{where} has no such metric", where=path, remedy=f"choose among {', '.join(names) or 'another file'}"
        )
    if len(set(names)) == 1:
        remedy = "give one result for each split, scored by one rule"
        raise UsageError(f"there are {len(names)} such figures", where=path, remedy=remedy)
    raise UsageError(f"could mean {len(names)} figures of {where}", where=path, remedy=f"write {' or '.join(names)}")


def _short_names(measured: Measured, metric: str) -> set[str]:
    split = set() if measured.split is None else {f"{measured.split}.{metric}"}
    return {metric, f"{measured.benchmark}.{metric}"} | split


def _value(measured: Measured, metric: str) -> float | None:
    """Return a figure's value; None if it was measured on nothing. Raises QkeditError for an impossible value."""
    value = None if measured.n == 0 else measured.metrics[metric]
    if value is not None and meaning_of(measured.benchmark, metric).unit is Unit.SHARE and not 0 <= value <= 1:
        raise QkeditError(
            f"is {value:g}, and not a share from 0 to 1",
            where=f"{measured.name}.{metric}",
            remedy="give what `qkedit score --json` or `qkedit eval` wrote",
        )
    return value


def _check_questions(before: Measured, measured: Measured, path: str) -> None:
    """Refuse a baseline with other questions: a difference from it says nothing about the model."""
    if before.ids is not None and measured.ids is not None:
        alone = len(set(before.ids) ^ set(measured.ids))
        what = f"{len(before.ids)} and {len(measured.ids)} items, of which {alone} are in one of them alone"
        differ = before.ids != measured.ids
    else:
        # Without items, only the number of counted answers can be compared.
        what, differ = f"{before.n} and {measured.n} answers", None not in (before.n, measured.n)
        differ = differ and before.n != measured.n
    if not differ and None not in (before.truths, measured.truths):
        what, differ = "some items have another ground truth", before.truths != measured.truths
    if not differ and None not in (before.questions, measured.questions):
        what, differ = "the wording or the images differ", before.questions != measured.questions
    if differ:
        raise UsageError(
            f"the baseline and the result were measured on different questions ({what})",
            where=path,
            remedy="measure both on the same questions",
        )


def _check_unit(
    measured: Measured, metric: str, limit: float, requirement: str, *, is_difference: bool = False
) -> None:
    """Refuse a percentage as the limit of a share, and the reverse: such a limit would always or never be met."""
    # A comparison's metrics are differences of a metric, and the ends of their intervals: `recall_difference_low`.
    of, difference, _ = metric.partition("_difference")
    meaning = meaning_of(measured.benchmark, of)
    is_difference = is_difference or bool(difference)
    if meaning.unit is Unit.HUNDREDTHS and abs(limit) > (LARGEST_LOSS if is_difference else _LARGEST_HUNDREDTHS):
        raise UsageError(
            f"papers print {of} times 100, such as 105 for 1.05",
            where=requirement,
            remedy=f"write {limit / 100:g} for {limit:g} points",
        )
    if meaning.unit is Unit.SHARE and abs(limit) > 1:
        raise UsageError(
            f"{of} is a share from 0 to 1",
            where=requirement,
            remedy=f"write {limit / 100:g} for {limit:g} percent",
        )
    # Hallucination rates below one percent are possible; such shares of right answers are not plausible.
    is_high = meaning.unit is Unit.PERCENT and meaning.better is Better.HIGHER
    if is_high and not is_difference and 0 < limit <= 1:
        raise UsageError(
            f"{metric} of {measured.benchmark} is in percent",
            where=requirement,
            remedy=f"write {100 * limit:g} for a share of {limit:g}",
        )
