"""What edits are chosen by: a measure to improve, and guards, measures that must not get worse.

This module does not import torch, so that a command can refuse an invalid request quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qkedit.errors import UsageError
from qkedit.evaluation.metric import Better, Unit
from qkedit.evaluation.statistics.gate import LARGEST_LOSS
from qkedit.evaluation.statistics.guard import Guard, loss, parse_guard
from qkedit.laboratory.measures import MEASURES, Measure, Outcome
from qkedit.laboratory.tuning.option_lists import separated


def guards(text: str, measures: Mapping[str, Measure] = MEASURES) -> tuple[Guard, ...]:
    """Return the guards of `--no-worse`: `recall:0.02,f1_random:0.01`, or `none`.

    Args:
        text: the value of the option.
        measures: the measures there are, by their full names.

    Raises:
        UsageError: a guard does not have this form, or its measure is unknown or has no better direction.
    """
    if text.strip() == "none":
        return ()
    remedy = "write MEASURE:TOLERANCE such as recall:0.02, or none"
    return separated(text, ",", lambda part: _guard(part, measures), "--no-worse", remedy)


def _guard(text: str, measures: Mapping[str, Measure]) -> Guard:
    given = parse_guard(text)
    measure = measure_at(given.path, measures, "--no-worse")
    if measure.better is Better.NEITHER:
        raise UsageError(f"{measure.name} has no worse direction", where="--no-worse", remedy="guard another")
    guard = Guard(measure.name, given.tolerance)
    if measure.meaning.unit is Unit.HUNDREDTHS and guard.tolerance > LARGEST_LOSS:
        raise UsageError(
            f"{measure.name} is a hundredth of what is shown",
            where="--no-worse",
            remedy=f"write {guard.tolerance / 100:g} for {guard.tolerance:g} points",
        )
    if measure.is_share and guard.tolerance > 1:
        raise UsageError(
            f"{measure.name} is a share from 0 to 1",
            where="--no-worse",
            remedy=f"write {guard.tolerance / 100:g} for {guard.tolerance:g} percent",
        )
    return guard


def measure_at(path: str, measures: Mapping[str, Measure], where: str) -> Measure:
    """Return the measure that a path means: its full name, or a shorter one that means no other.

    `pope.adversarial.f1` is also `pope.f1`, `adversarial.f1` and `f1`, where only one measure has that name.

    Raises:
        UsageError: there is no such measure, or several.
    """
    if path in measures:
        return measures[path]
    fitting = [measure for measure in measures.values() if path in _short_names(measure)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(measure.name for measure in fitting)
        raise UsageError(f"{path} could mean {len(fitting)} measures", where=where, remedy=f"write {names}")
    raise UsageError(f"{path!r} is not a measure", where=where, remedy=f"choose among {', '.join(measures)}")


def _short_names(measure: Measure) -> set[str]:
    benchmark, *rest = measure.name.split(".")
    if not rest:
        return set()
    *split, metric = rest
    return {metric, f"{benchmark}.{metric}", ".".join([*split, metric])}


def cost(measure: Measure, value: float | None) -> float:
    """Return the value to minimise; what has none (for example without mentions) comes last."""
    if value is None:
        return float("inf")
    return value if measure.better is Better.LOWER else -value


@dataclass(frozen=True)
class Goal:
    """The measure to improve and the guards.

    Attributes:
        objective: the measure to improve.
        guards: the measures that must not get worse.
        measures: all measures, by name.
    """

    objective: Measure
    guards: tuple[Guard, ...]
    measures: Mapping[str, Measure]

    def __post_init__(self) -> None:
        """Refuse a measure that cannot be improved. Raises UsageError."""
        if self.objective.better is Better.NEITHER:
            raise UsageError(
                f"{self.objective.name} has no better direction", where="--objective", remedy="choose another"
            )

    @property
    def shown(self) -> tuple[Measure, ...]:
        """The objective, and the guarded measures after it."""
        names = dict.fromkeys([self.objective.name, *(guard.path for guard in self.guards)])
        return tuple(self.measures[name] for name in names)

    def broken(self, outcome: Outcome, base: Outcome, slack: float = 1.0) -> tuple[str, ...]:
        """Return the guarded measures that are worse by more than their tolerances times `slack`."""
        return tuple(
            guard.path for guard in self.guards if not guard.is_kept(self._loss(guard.path, outcome, base), slack)
        )

    def _loss(self, name: str, outcome: Outcome, base: Outcome) -> float | None:
        measure = self.measures[name]
        return loss(measure.better, value_of(outcome, measure), value_of(base, measure))

    def cost(self, outcome: Outcome, base: Outcome, slack: float = 1.0) -> float:
        """Return the number that a sampler minimises; whatever breaks a guard comes after all that keeps them.

        Among edits that break one, those come first that gain more and lose less: their neighbours are worth a try.
        """
        own = min(cost(self.objective, value_of(outcome, self.objective)), _NO_VALUE)
        broken = self.broken(outcome, base, slack)
        if not broken:
            return own
        losses = [self._loss(name, outcome, base) for name in broken]
        return _BROKEN + own + sum(_BROKEN if one is None else one for one in losses)

    def gain(self, value: float | None, reference: float | None) -> float:
        """Return how much better a value of the objective is than the base's; minus infinity without either."""
        worse = loss(self.objective.better, value, reference)
        return float("-inf") if worse is None else -worse


# Samplers compare costs only by their order; figures of benchmarks are far smaller.
_NO_VALUE, _BROKEN = 1e9, 1e10


def value_of(outcome: Outcome, measure: Measure) -> float | None:
    """Return the value of a measure; None if nothing of its part was asked, too."""
    return outcome.value(measure) if measure.part in outcome.scores else None
