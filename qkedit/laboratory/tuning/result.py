"""The result of a search: its trials, the best trade-offs among them, and the confirmation of the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from qkedit.evaluation.metric import Better
from qkedit.laboratory.measures import Figure
from qkedit.laboratory.tuning.confirmation import Confirmation, Verdict
from qkedit.laboratory.tuning.goal import Goal, cost
from qkedit.laboratory.tuning.space import Candidate
from qkedit.laboratory.tuning.trial_runner import Effect


class Ended(Enum):
    """How a trial ended."""

    FINISHED = "finished"
    GIVEN_UP = "given up"  # hopeless after some of the questions
    NO_HEAD = "no head left"  # all its heads are spared; nothing was asked
    TOO_FAR = "too far"  # moved the model by more than the largest drift; nothing was asked


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes:
        number: its number from 1, in the order in which edits were tried.
        edit: the edit.
        ended: how it ended.
        effect: what the edit does to the weights, and its drift.
        values: the objective and the guarded measures, over all that was asked; empty if nothing was.
        objective: the objective with its interval and its difference from the base; None unless it finished.
        broken: the guards that it breaks.
        seconds: the time it took, when it ran.
    """

    number: int
    edit: Candidate
    ended: Ended
    effect: Effect
    values: Mapping[str, float | None]
    objective: Figure | None
    broken: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the trial as `--json` prints it."""
        return {
            "number": self.number,
            "edit": self.edit.as_dict(),
            "ended": self.ended.value,
            "effect": asdict(self.effect),
            "values": dict(self.values),
            "objective": None if self.objective is None else asdict(self.objective),
            "broken_guards": list(self.broken),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class TuneReport:
    """A finished search.

    Attributes:
        model: the model as the user named it.
        revision: its revision on the hub.
        questions: the questions in words.
        goal: what edits were chosen by.
        halves: the number of units of each half.
        size: the number of edits in the space.
        base: the base's values of the objective and the guarded measures, on the first half.
        trials: the trials in the order in which they ran.
        best: the best finished trial that keeps the guards and beats the base on the first half; None without one.
        confirmation: the best edit on the second half; None without one.
        most_drift: the largest drift that was allowed.
        resumed: the number of results of an earlier run.
        seconds: the time of all trials together, whenever they ran.
        warnings: sentences to read before trusting the figures.
    """

    model: str
    revision: str | None
    questions: str
    goal: Goal
    halves: tuple[int, int]
    size: int
    base: Mapping[str, float | None]
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    confirmation: Confirmation | None
    most_drift: float | None
    resumed: int
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[TrialResult, ...]:
        """The finished trials, the best first, among equals the smallest drift; those that break a guard last."""
        finished = [trial for trial in self.trials if trial.ended is Ended.FINISHED]
        objective = self.goal.objective

        def rank(trial: TrialResult) -> tuple[bool, float, float, int]:
            own = cost(objective, trial.values[objective.name])
            return bool(trial.broken), own, trial.effect.drift or 0.0, trial.number

        return tuple(sorted(finished, key=rank))

    @property
    def pareto(self) -> tuple[TrialResult, ...]:
        """The finished trials that no other one, nor the base, beats in objective, guarded measures and drift."""
        finished = [trial for trial in self.trials if trial.ended is Ended.FINISHED]
        base = [cost_of(self.base[measure.name], measure.better) for measure in self.goal.shown]
        points = {trial.number: self._point(trial) for trial in finished}
        drifts = any(trial.effect.drift is not None for trial in finished)
        others: list[tuple[int, list[float]]] = [(0, [*base, 0.0] if drifts else base), *points.items()]
        return tuple(
            trial
            for trial in finished
            if not any(number != trial.number and _dominates(point, points[trial.number]) for number, point in others)
        )

    @property
    def verdict(self) -> Verdict:
        """What the search found."""
        return Verdict.NOTHING if self.confirmation is None else self.confirmation.verdict

    @property
    def command(self) -> str | None:
        """The command line that writes a model with the best edit; None unless it is confirmed."""
        if self.best is None or self.verdict is not Verdict.CONFIRMED:
            return None
        return self.best.edit.command(self.model, self.revision)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return {
            "model": self.model,
            "questions": self.questions,
            "objective": self.goal.objective.name,
            "guards": [f"{guard.path}:{guard.tolerance:g}" for guard in self.goal.guards],
            "most_drift": self.most_drift,
            "halves": list(self.halves),
            "space": self.size,
            "base": dict(self.base),
            "trials": [trial.as_dict() for trial in self.trials],
            "pareto": [trial.number for trial in self.pareto],
            "best": None if self.best is None else self.best.number,
            "confirmation": None if self.confirmation is None else self.confirmation.as_dict(),
            "verdict": self.verdict.value,
            "steer": self.command,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
        }

    def _point(self, trial: TrialResult) -> list[float]:
        costs = [cost_of(trial.values[measure.name], measure.better) for measure in self.goal.shown]
        return costs if trial.effect.drift is None else [*costs, trial.effect.drift]


def cost_of(value: float | None, better: Better) -> float:
    """Return a number that is smaller the better a value is."""
    if value is None:
        return float("inf")
    return -value if better is Better.HIGHER else value


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether a point is nowhere worse than another and somewhere better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
