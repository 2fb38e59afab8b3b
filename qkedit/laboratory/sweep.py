"""Run a sweep: every cell of a grid and its random controls on one half of the scenes, the winner on the other half.

The first half is for the choice. The best of many cells looks better there than it is, so the winner, its controls and
the base then run on the second half, which is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.experiment import ExperimentResults, Watch, run_experiment
from qkedit.laboratory.measures import MEASURES, Figure, Outcome, figure
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.tuning.confirmation import Confirmation, Verdict, confirmation_of
from qkedit.laboratory.tuning.goal import cost
from qkedit.laboratory.tuning.space import Candidate
from qkedit.laboratory.worker import Job, ModelSpec


@dataclass(frozen=True)
class CellResult:
    """The result of one cell on the first half of the scenes.

    Attributes:
        cell: the edit.
        values: the values of the objective and the guarded measures.
        objective: the objective of the edit, with its difference from the base.
        controls: the objective of its random controls, pooled.
        broken: the names of the violated guards.
    """

    cell: Candidate
    values: Mapping[str, float | None]
    objective: Figure
    controls: Figure
    broken: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        return {
            "cell": self.cell.as_dict(),
            "values": dict(self.values),
            "objective": asdict(self.objective),
            "controls": asdict(self.controls),
            "broken_guards": list(self.broken),
        }


@dataclass(frozen=True)
class SweepReport:
    """A finished sweep.

    Attributes:
        settings: the settings of the sweep.
        base: the base's values of the objective and the guarded measures, on the first half.
        ranked: every cell, the best first; those that violate a guard last.
        confirmation: the best cell on the second half; None if every cell violates a guard.
        resumed: the number of results of an earlier run.
        warnings: sentences to read before trusting the figures.
    """

    settings: SweepSettings
    base: Mapping[str, float | None]
    ranked: tuple[CellResult, ...]
    confirmation: Confirmation | None
    resumed: int
    warnings: tuple[str, ...] = ()

    @property
    def winner(self) -> CellResult | None:
        """Return the best cell that does not violate a guard."""
        return self.ranked[0] if self.ranked and not self.ranked[0].broken else None

    @property
    def verdict(self) -> Verdict:
        """What the sweep found."""
        return Verdict.NOTHING if self.confirmation is None else self.confirmation.verdict

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return {
            "settings": self.settings.as_dict(),
            "base": dict(self.base),
            "cells": [result.as_dict() for result in self.ranked],
            "winner": None if self.winner is None else self.winner.cell.as_dict(),
            "confirmation": None if self.confirmation is None else self.confirmation.as_dict(),
            "verdict": self.verdict.value,
            "resumed": self.resumed,
        }


def run_sweep(
    model_spec: ModelSpec, settings: SweepSettings, file: ResultsFile | None, workers: int, watch: Watch | None = None
) -> SweepReport:
    """Run the jobs that are not in the file yet, choose the winner, and confirm it.

    Args:
        model_spec: the model.
        settings: the grid, see `SweepSettings`.
        file: the results file; None keeps results only in memory.
        workers: the number of processes.
        watch: called with the progress of the first half.

    Raises:
        QkeditError: a cell does not fit the model, or the file cannot be written.
    """
    first, second = settings.scenes.halves()
    results = run_experiment(model_spec, [Job(arm, first) for arm in settings.arms()], workers, file, watch)
    resumed = results.resumed
    eval_set = make_eval_set(first)
    base = results.outcome(Arm(BASE), eval_set, first)
    ranked = rank(
        settings,
        base,
        (
            (cell, results.outcome(cell.arm(), eval_set, first), _controls(results, settings, cell, eval_set, first))
            for cell in settings.cells()
        ),
    )
    confirmation = None
    if ranked and not ranked[0].broken:
        winner = ranked[0].cell
        arms = [Arm(BASE), winner.arm(), *winner.controls(settings.control, settings.seeds)]
        again = run_experiment(model_spec, [Job(arm, second) for arm in arms], workers, file)
        seen = make_eval_set(second)
        own, best, *controls = (again.outcome(arm, seen, second) for arm in arms)
        confirmation = confirmation_of(settings.goal, own, best, controls, measures=tuple(MEASURES.values()))
    values = {measure.name: base.value(measure) for measure in settings.goal.shown}
    return SweepReport(settings, values, ranked, confirmation, resumed, results.warnings)


def _controls(
    results: ExperimentResults, settings: SweepSettings, cell: Candidate, eval_set: EvalSet, scenes: SceneRange
) -> list[Outcome]:
    return [results.outcome(arm, eval_set, scenes) for arm in cell.controls(settings.control, settings.seeds)]


def rank(
    settings: SweepSettings, base: Outcome, cells: Iterable[tuple[Candidate, Outcome, Sequence[Outcome]]]
) -> tuple[CellResult, ...]:
    """Rank the cells by the objective, the best first; those that violate a guard come after all others.

    Among equal cells the mildest comes first, in the order of the grid.

    Args:
        settings: the objective and the guards.
        base: the outcome of the base on the same scenes.
        cells: each cell with its outcome and those of its controls.
    """
    goal = settings.goal
    objective = goal.objective
    results = [
        CellResult(
            cell,
            {measure.name: outcome.value(measure) for measure in goal.shown},
            figure([outcome], base, objective),
            figure(list(controls), base, objective),
            goal.broken(outcome, base),
        )
        for cell, outcome, controls in cells
    ]
    return tuple(
        sorted(results, key=lambda result: (bool(result.broken), cost(objective, result.values[objective.name])))
    )
