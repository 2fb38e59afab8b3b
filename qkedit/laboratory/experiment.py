"""Run the jobs that are not done yet, and store their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qkedit.laboratory.arms import Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange
from qkedit.laboratory.measures import Outcome
from qkedit.laboratory.processes import run_jobs
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.worker import Job, JobResult, ModelSpec

# The number of arms that a warning names.
_NAMED = 3
# Called with the number of finished jobs.
Watch = Callable[[int, int], object]


@dataclass(frozen=True)
class ExperimentResults:
    """Results by arm and scenes. They are scored on demand, since scored items take far more memory.

    Attributes:
        results: the results, by the arm's name and the scenes.
        resumed: the number of results of an earlier run.
    """

    results: Mapping[tuple[str, SceneRange], JobResult]
    resumed: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the scores: the arms with empty answers, and how these are scored."""
        captions = {f"{arm} ({len(r.answers.captions)})": r.answers.captions for (arm, _), r in self.results.items()}
        answers = {f"{arm} ({len(r.answers.yes_no)})": r.answers.yes_no for (arm, _), r in self.results.items()}
        return (*_empty("captions", captions, "contain no hallucination"), *_empty("answers", answers, "count as yes"))

    def outcome(self, arm: Arm, eval_set: EvalSet, scenes: SceneRange) -> Outcome:
        """Return an arm's scores on the evaluation set for these scenes."""
        return scored(arm, eval_set, self.results[arm.name, scenes])


def _empty(what: str, said: Mapping[str, Sequence[str]], scored: str) -> list[str]:
    counts = {arm: sum(not text.strip() for text in texts) for arm, texts in said.items()}
    silent = [f"{count} of {arm}" for arm, count in counts.items() if count]
    more = f" and of {len(silent) - _NAMED} more arms" if len(silent) > _NAMED else ""
    return [f"empty {what} {scored}: there are {', '.join(silent[:_NAMED])}{more}"] if silent else []


def run_experiment(
    model_spec: ModelSpec,
    jobs: Sequence[Job],
    workers: int,
    file: ResultsFile | None = None,
    watch: Watch | None = None,
) -> ExperimentResults:
    """Return the results of all jobs, running only those that are not in the file.

    Args:
        model_spec: the model.
        jobs: the jobs.
        workers: the number of processes.
        file: the results file; None keeps results only in memory.
        watch: called with the number of finished jobs.

    Raises:
        QkeditError: an arm does not fit the model, or the file cannot be written.
    """
    results: dict[tuple[str, SceneRange], JobResult] = {}
    missing = []
    for job in jobs:
        known = file.result(job) if file is not None else None
        if known is None:
            missing.append(job)
        else:
            results[job.arm.name, job.scenes] = known
    resumed = len(results)
    if watch is not None:
        watch(resumed, len(jobs))
    for job, result in run_jobs(model_spec, missing, workers):
        if file is not None:
            file.add(job, result)
        results[job.arm.name, job.scenes] = result
        if watch is not None:
            watch(len(results), len(jobs))
    return ExperimentResults(results, resumed)
