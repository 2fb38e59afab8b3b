"""The demonstration: every method and its controls on the same scenes, compared with the unedited model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkedit.checkpoint.target import locate, refuse_existing
from qkedit.errors import UsageError
from qkedit.laboratory.arms import BASE, demonstration_arms
from qkedit.laboratory.bench import Job, Subject
from qkedit.laboratory.exam import ExamRange, make_exam
from qkedit.laboratory.measures import Row, compare
from qkedit.laboratory.saving import save
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.workers import run_jobs
from qkedit.steering.options import SteerOptions
from qkedit.steering.plan import plan_for
from qkedit.steering.selection import describe


@dataclass(frozen=True)
class Demonstration:
    """What came out.

    Attributes:
        subject: the model.
        layers: that were edited, in words.
        scenes: that were shown.
        rows: the base first.
        seconds: of work by arm, over all processes.
    """

    subject: Subject
    layers: str
    scenes: ExamRange
    rows: tuple[Row, ...]
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        return {
            "model": self.subject.model,
            "dtype": self.subject.dtype,
            "device": self.subject.device,
            "layers": self.layers,
            "scenes": asdict(self.scenes),
            "arms": [row.as_dict() for row in self.rows],
            "seconds": self.seconds,
        }


def demonstrate(
    subject: Subject,
    steer: SteerOptions,
    scenes: ExamRange,
    seeds: int,
    workers: int,
    directory: Path | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Demonstration:
    """Let every arm of the demonstration answer, and compare.

    Args:
        subject: the model.
        steer: the edit.
        scenes: to ask about.
        seeds: random controls of each kind.
        workers: processes.
        directory: where to keep everything; see `qkedit.laboratory.saving`.
        watch: told how many of the arms are done.

    Raises:
        QkeditError: the edit or a plug-in does not fit the model, or something cannot be written.
    """
    if seeds < 1:
        raise UsageError("the edit would have no control", where="--seeds", remedy="give 1 or more, such as 5")
    if directory is not None:
        refuse_existing(locate(directory), overwrite=False)  # before the work rather than after it
    plan = plan_for(subject.model, steer, subject.revision)
    exam = make_exam(scenes)
    arms = demonstration_arms(steer, seeds)
    results = {}
    for job, result in run_jobs(subject, [Job(arm, scenes) for arm in arms], workers):
        results[job.arm.name] = result
        if watch is not None:
            watch(len(results), len(arms))
    outcomes = [scored(arm, exam, results[arm.name]) for arm in arms]
    if directory is not None:
        save(directory, exam, [(outcome, results[outcome.arm.name].answers) for outcome in outcomes])
    base = next(outcome for outcome in outcomes if outcome.arm.name == BASE)
    return Demonstration(
        subject,
        f"layers {describe([planned.layer.index for planned in plan.layers])}",
        scenes,
        compare(outcomes, base),
        {arm.name: round(results[arm.name].seconds, 2) for arm in arms},
    )
