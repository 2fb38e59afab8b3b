"""Run trials on loaded models, one after another or several at once, with every result in a journal.

A result that the journal holds is not computed again, and a model that is not needed is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qkedit.evaluation.files.journal import Journal
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.processes import Task, Workers
from qkedit.laboratory.tuning.data import Answers, TuningData
from qkedit.laboratory.tuning.trial_worker import Measurement, TrialWorker

SCHEMA = 1
KIND = "qkedit tune"

Result = TypeVar("Result")
# A generator that yields measurements, receives each in the form of a journal, and returns a result.
Trial = Generator[Measurement, dict[str, Any], Result]


class TrialsFile(Journal):
    """The journal of a search: the effect of each edit, and the answers to each part of the questions.

    Args:
        path: the file, created if missing.
        settings: everything that affects a result; see `search_identity`.

    Raises:
        UsageError: the file is not a search's, or that of another one.
        QkeditError: another run is writing to it, it is damaged, or it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(path, KIND, SCHEMA, settings)
        self.records: dict[str, dict[str, Any]] = {}

    def take(self, record: dict[str, Any]) -> None:
        """Take over a line of the file."""
        values = record["answers"].values() if "answers" in record else (record["energy_removed"] or 0.0,)
        if not isinstance(record["key"], str) or not all(isinstance(value, str | float | int) for value in values):
            raise TypeError("another form")
        float(record["seconds"])
        self.records[record["key"]] = record


@dataclass(frozen=True)
class Effect:
    """What an edit does to a model, before any question.

    Attributes:
        energy_removed: share of the query-key products' energy, mean over edited heads; None if no head is edited.
        relative_change: `‖W_q' − W_q‖ / ‖W_q‖`, mean over edited heads; None if no head is edited.
        drift: the mean divergence of the next token from the base along its answers, in nats; None if not measured.
        seconds: the time of the edit and of measuring its drift.
    """

    energy_removed: float | None
    relative_change: float | None
    drift: float | None
    seconds: float


@dataclass(frozen=True)
class Told:
    """The answers to one part of the questions, and the seconds they took."""

    answers: Answers
    seconds: float


def effect_of(arm: Arm) -> Trial[Effect]:
    """Measure the effect of an arm's edit on the weights, and its drift."""
    record = yield Measurement(arm)
    return Effect(record["energy_removed"], record["relative_change"], record["drift"], record["seconds"])


def answers_of(arm: Arm, part: str, units: Iterable[str]) -> Trial[Told]:
    """Ask an arm the questions about some units.

    Args:
        arm: the arm.
        part: the name of these units, the same in every run.
        units: the units.
    """
    record = yield Measurement(arm, part, tuple(units))
    return Told(record["answers"], record["seconds"])


class TrialRunner:
    """Runs trials; a context manager that unloads the models and ends the workers.

    Args:
        model: the model, without edits.
        data: the questions.
        file: the journal; None keeps results only in memory.
        device: the device on which edits are computed.
        drift_images: the number of images on which drift is measured; 0 for none.
        devices: the device of each worker; with a single one, this process does the work.
        single_thread: as for `TrialWorker`.
    """

    def __init__(
        self,
        model: LocalModel,
        data: TuningData,
        file: TrialsFile | None,
        *,
        device: str,
        drift_images: int,
        devices: Sequence[str],
        single_thread: bool,
    ) -> None:
        self.model = model
        self.data = data
        self.device = device
        self.workers = len(devices)
        self.resumed = 0
        self.asked = 0
        self._file = file
        self._records: dict[str, dict[str, Any]] = {} if file is None else file.records
        self._opened = ExitStack()
        if self.workers == 1:
            worker = TrialWorker(model, data, device, drift_images, single_thread=single_thread)
            makers = [partial(self._opened.enter_context, worker)]
        else:
            # A worker loads weights of its own, not those that runs in this process share.
            copies = [replace(model, device=one, shared=None) for one in devices]
            makers = [
                partial(TrialWorker, copy, data, copy.device, drift_images, single_thread=single_thread)
                for copy in copies
            ]
        self._pool = self._opened.enter_context(Workers(makers))

    def __enter__(self) -> Self:
        """Return self; models are loaded later."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload the models and end the workers."""
        self._opened.__exit__(kind, error, trace)

    def run(self, trials: Sequence[Trial[Result]], watch: Callable[[int], None] = lambda done: None) -> list[Result]:
        """Return the results of trials in their order; after each, its model has its original weights, bit for bit.

        Args:
            trials: the trials.
            watch: called with the number of finished ones.

        Raises:
            QkeditError: an edit does not fit the model, it cannot answer, or its weights could not be restored.
        """
        results: dict[int, Result] = {}
        for number, result in self._pool.run(map(self._recorded, trials)):
            results[number] = result
            watch(len(results))
        return [results[number] for number in range(len(trials))]

    def holds(self, arm: Arm) -> bool:
        """Return whether the arm's trial was begun in an earlier run."""
        return Measurement(arm).key in self._records

    def _recorded(self, trial: Trial[Result]) -> Task[Result]:
        """Answer a trial from the journal where possible; what a worker measures is recorded at once."""
        has_asked = False
        wanted = next(trial)
        while True:
            record = self._records.get(wanted.key)
            if record is None:
                has_asked = True
                record = yield methodcaller("measure", wanted)
                self._record(record)
            else:
                self.resumed += 1
            try:
                wanted = trial.send(record)
            except StopIteration as end:
                result: Result = end.value
                break
        if has_asked:
            yield methodcaller("restore")
        return result

    def _record(self, record: dict[str, Any]) -> None:
        """Store a result, on the disk if there is a journal."""
        self.asked += 1
        self._records[record["key"]] = record
        if self._file is not None:
            self._file.append(record)
