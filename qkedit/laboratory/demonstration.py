"""The demonstration: every method and its controls on the same scenes, compared with the unedited model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.arms import BASE, CONTROL, EDITED, Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.experiment import Watch, run_experiment
from qkedit.laboratory.measures import MEASURES, Outcome, Row, against, compare
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.saved_files import save
from qkedit.laboratory.worker import Job, ModelSpec
from qkedit.steering.plan import plan_for


@dataclass(frozen=True)
class Demonstration:
    """The result of a demonstration.

    Attributes:
        model_spec: the model.
        layers: the edited layers.
        scenes: the scenes of the evaluation.
        rows: the rows of the comparison, the base first.
        seconds: the seconds of work by arm, over all processes.
        eval_set: the evaluation set.
        answered: the scores and answers of every arm.
        to_controls: by measure, the edit minus its random controls, all seeds pooled; empty without either.
        warnings: sentences to read before trusting the figures.
    """

    model_spec: ModelSpec
    layers: tuple[int, ...]
    scenes: SceneRange
    rows: tuple[Row, ...]
    seconds: dict[str, float]
    eval_set: EvalSet
    answered: tuple[tuple[Outcome, EvalSetAnswers], ...]
    to_controls: Mapping[str, Difference]
    warnings: tuple[str, ...]

    @property
    def edited(self) -> Row | None:
        """The row of the edit; None without an edited arm."""
        return next((row for row in self.rows if row.name == EDITED), None)

    def save(self, directory: Path) -> None:
        """Write everything to a new directory; see `qkedit.laboratory.saved_files`. Raises QkeditError."""
        save(directory, self.eval_set, self.answered)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        return {
            "model": self.model_spec.model,
            "dtype": self.model_spec.dtype,
            "device": self.model_spec.device,
            "layers": list(self.layers),
            "scenes": self.scenes.as_dict(),
            "arms": [row.as_dict() for row in self.rows],
            "to_controls": {name: asdict(difference) for name, difference in self.to_controls.items()},
            "seconds": self.seconds,
        }


def demonstrate(
    model_spec: ModelSpec,
    arms: Sequence[Arm],
    scenes: SceneRange,
    workers: int,
    *,
    file: ResultsFile | None = None,
    watch: Watch | None = None,
    share_pictures: bool = True,
) -> Demonstration:
    """Run every arm of a demonstration, and compare them.

    Args:
        model_spec: the model.
        arms: the arms, including the base; see `demonstration_arms`.
        scenes: the scenes of the evaluation.
        workers: the number of processes.
        file: the file for intermediate results, so that an interrupted run can be resumed.
        watch: called with the number of finished arms.
        share_pictures: as in `run_eval_set`.

    Raises:
        QkeditError: the edit or a plug-in does not fit the model, or a result cannot be written.
    """
    edited = [
        plan_for(model_spec.model, arm.steer, model_spec.revision).layers for arm in arms if arm.steer is not None
    ]
    eval_set = make_eval_set(scenes)
    found = run_experiment(model_spec, [Job(arm, scenes, share_pictures) for arm in arms], workers, file, watch)
    outcomes = [found.outcome(arm, eval_set, scenes) for arm in arms]
    answers = [found.results[arm.name, scenes].answers for arm in arms]
    base = next(outcome for outcome in outcomes if outcome.arm.name == BASE)
    return Demonstration(
        model_spec,
        tuple(sorted({planned.layer.index for layers in edited for planned in layers})),
        scenes,
        compare(outcomes, base),
        {outcome.arm.name: round(outcome.seconds, 2) for outcome in outcomes},
        eval_set,
        tuple(zip(outcomes, answers, strict=True)),
        _to_controls(outcomes),
        found.warnings,
    )


def _to_controls(outcomes: Sequence[Outcome]) -> dict[str, Difference]:
    edited = next((outcome for outcome in outcomes if outcome.arm.group == EDITED), None)
    controls = [outcome for outcome in outcomes if outcome.arm.group == CONTROL]
    if edited is None or not controls:
        return {}
    return {name: against(edited, controls, MEASURES[name]) for name in ("chair_s", "recall")}
