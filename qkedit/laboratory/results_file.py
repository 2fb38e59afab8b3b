"""The results file of an experiment, from which an interrupted experiment is resumed.

It is a journal: first the experiment's settings, then one line per result, including the answers, so that all can be
scored again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkedit.evaluation.files.journal import Journal
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.worker import Job, JobResult

SCHEMA = 1
KIND = "qkedit laboratory"
# The old and the present name of the kept share of a mode: files begun under the old name can be resumed.
_OLD_NAME, _NAME = "residual", "retain"


class ResultsFile(Journal):
    """The results of one experiment on disk; a context manager that locks the file.

    Args:
        path: the file, created if missing.
        settings: the settings of the experiment, as JSON values.

    Raises:
        UsageError: the file is not an experiment's, or that of another one.
        QkeditError: another run is writing to it, it is damaged, or it cannot be written.
    """

    AGAIN = "remove the line, and its arm will run again"

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(path, KIND, SCHEMA, settings, lambda name: name.replace(_OLD_NAME, _NAME))
        self._results: dict[str, JobResult] = {}

    def result(self, job: Job) -> JobResult | None:
        """Return the result of an earlier run, or None."""
        return self._results.get(_key(job))

    def add(self, job: Job, result: JobResult) -> None:
        """Append a result and flush it to the disk. Raises QkeditError if it cannot be written."""
        self._results[_key(job)] = result
        self.append(
            {
                "arm": job.arm.as_dict(),
                "scenes": job.scenes.as_dict(),
                "key": _key(job),
                "energy_removed": result.energy_removed,
                "relative_change": result.relative_change,
                "seconds": round(result.seconds, 3),
                "captions": list(result.answers.captions),
                "yes_no": list(result.answers.yes_no),
                "batches": [[count, round(seconds, 6)] for count, seconds in result.answers.batches],
            }
        )

    def take(self, record: dict[str, Any]) -> None:
        """Take over the result in a line of the file."""
        self._results[record["key"].replace(_OLD_NAME, _NAME)] = JobResult(
            EvalSetAnswers(
                tuple(record["captions"]),
                tuple(record["yes_no"]),
                tuple((count, seconds) for count, seconds in record.get("batches", ())),
            ),
            record["seconds"],
            record["energy_removed"],
            record["relative_change"],
        )


def _key(job: Job) -> str:
    return f"{job.arm.name} | scenes {job.scenes.first} to {job.scenes.first + job.scenes.count - 1}"
