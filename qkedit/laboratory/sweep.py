"""Run a sweep: every cell of a grid and its random controls on one half of the scenes, the winner on the other half.

The first half is for the choice. The best of many cells looks better there than it is, so the winner, its controls and
the base then run on the second half, which is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.experiment import ExperimentResults, Watch, run_experiment
from qkedit.laboratory.measures import MEASURES, Figure, Outcome, Row, against, compare, figure
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.tuning.goal import cost, is_kept
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
class Confirmation:
    """The winner on scenes that were not used to choose it.

    Attributes:
        rows: base, winner and its controls, by every measure.
        to_controls: by measure, the winner minus its controls.
    """

    rows: tuple[Row, ...]
    to_controls: Mapping[str, Difference]

    def as_dict(self) -> dict[str, Any]:
        """Return the confirmation as `--json` prints it."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "to_controls": {name: asdict(difference) for name, difference in self.to_controls.items()},
        }


@dataclass(frozen=True)
class SweepReport:
    """A finished sweep.

    Attributes:
        settings: the settings of the sweep.
        base: the base's values of the objective and the guarded measures, on the first half.
        ranked: every cell, the best first; those that violate a guard last.
        confirmation: the confirmation of the winner; None if every cell violates a guard.
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

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return {
            "settings": self.settings.as_dict(),
            "base": dict(self.base),
            "cells": [result.as_dict() for result in self.ranked],
            "winner": None if self.winner is None else self.winner.cell.as_dict(),
            "confirmation": None if self.confirmation is None else self.confirmation.as_dict(),
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
        confirmation = _confirmation(again, settings, winner, second)
    return SweepReport(settings, _values(settings, base), ranked, confirmation, resumed, results.warnings)


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
    objective = MEASURES[settings.objective]
    results = []
    for cell, outcome, controls in cells:
        values = _values(settings, outcome)
        broken = tuple(
            guard.measure
            for guard in settings.guards
            if not is_kept(
                MEASURES[guard.measure], values[guard.measure], base.value(MEASURES[guard.measure]), guard.tolerance
            )
        )
        results.append(
            CellResult(
                cell, values, figure([outcome], base, objective), figure(list(controls), base, objective), broken
            )
        )
    return tuple(
        sorted(results, key=lambda result: (bool(result.broken), cost(objective, result.values[objective.name])))
    )


def _values(settings: SweepSettings, outcome: Outcome) -> dict[str, float | None]:
    wanted = dict.fromkeys([settings.objective, *(guard.measure for guard in settings.guards)])
    return {name: outcome.value(MEASURES[name]) for name in wanted}


def _confirmation(
    results: ExperimentResults, settings: SweepSettings, winner: Candidate, scenes: SceneRange
) -> Confirmation:
    eval_set = make_eval_set(scenes)
    base, edit = (results.outcome(arm, eval_set, scenes) for arm in (Arm(BASE), winner.arm()))
    controls = _controls(results, settings, winner, eval_set, scenes)
    return Confirmation(
        compare([base, edit, *controls], base),
        {name: against(edit, controls, measure) for name, measure in MEASURES.items()},
    )
