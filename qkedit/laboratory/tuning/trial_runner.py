"""Run trials on one loaded model: edit it in memory, ask it, and restore it, with every result in a journal.

A result that the journal holds is not computed again, and a model that is not needed is not loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.journal import Journal
from qkedit.evaluation.forced_answers import AnswerWithLogits, answer_with_logits, divergences
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.tuning.data import Answers, AskedModel, TuningData
from qkedit.runtime.copying_heads import copying_heads
from qkedit.runtime.editing import ModelEdit, edit_as_stored
from qkedit.runtime.sink import sink_of
from qkedit.steering.plan import make_plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.spectral.sink import Sink
    from qkedit.steering.steer_options import SteerOptions

SCHEMA = 1
KIND = "qkedit tune"
# The length of the answers along which drift is measured.
DRIFT_TOKENS = 32


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


class TrialRunner:
    """A model that is loaded when it is first needed; a context manager that unloads it.

    Args:
        model: the model, without edits.
        data: the questions.
        file: the journal; None keeps results only in memory.
        device: the device on which edits are computed.
        drift_images: the number of images on which drift is measured; 0 for none.
    """

    def __init__(
        self, model: LocalModel, data: TuningData, file: TrialsFile | None, *, device: str, drift_images: int
    ) -> None:
        self.model = model
        self.data = data
        self.device = device
        self.drift_images = drift_images
        self.resumed = 0
        self.asked = 0
        self._file = file
        self._records: dict[str, dict[str, Any]] = {} if file is None else file.records
        self._opened = ExitStack()
        self._session: AskedModel | None = None
        self._base_answers: list[AnswerWithLogits] = []

    def __enter__(self) -> Self:
        """Return self; the model is loaded later."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload the model."""
        self._session, self._base_answers = None, []
        self._opened.close()

    @contextmanager
    def trial(self, arm: Arm) -> Iterator[Trial]:
        """Yield a trial of an arm; after the block the model has its original weights, bit for bit.

        Raises:
            QkeditError: the edit does not fit the model, or the weights could not be restored.
        """
        trial = Trial(self, arm)
        try:
            yield trial
        finally:
            trial.undo()

    def recorded(self, key: str) -> dict[str, Any] | None:
        """Return an earlier result, and count it."""
        record = self._records.get(key)
        self.resumed += record is not None
        return record

    def record(self, record: dict[str, Any]) -> None:
        """Store a result, on the disk if there is a journal."""
        self.asked += 1
        self._records[record["key"]] = record
        if self._file is not None:
            self._file.append(record)

    def session(self) -> AskedModel:
        """Return the loaded model; when it is loaded, it answers along which drift is measured later."""
        if self._session is None:
            session = self._session = self._opened.enter_context(self.model.session())
            prompt, pictures = self._pictures()
            self._base_answers = [answer_with_logits(session.loaded, one, prompt, DRIFT_TOKENS) for one in pictures]
        return self._session

    def edited(self, options: SteerOptions | None) -> ModelEdit:
        """Edit the loaded model as `steer` would edit its checkpoint."""
        if options is None:
            return ModelEdit((), ())
        plan = make_plan(self._checkpoint, options)
        if options.spare != "none":
            try:
                plan = plan.sparing(self._copying)
            except UsageError:
                return ModelEdit((), ())  # all its heads copy
        if options.protect:
            plan = replace(plan, sink=self._sink)
        return edit_as_stored(self.session().loaded.model, plan)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        """The checkpoint that the model was loaded from, opened once for all edits."""
        return open_checkpoint(resolve(self.model.name, self.model.revision))

    @cached_property
    def _copying(self) -> Mapping[int, Sequence[int]]:
        """The heads by which the model copies, found by one run of the unedited model for all edits."""
        return copying_heads(self.session().loaded.model)

    @cached_property
    def _sink(self) -> Sink:
        """The attention sink, found likewise."""
        return sink_of(self.session().loaded.model)

    def drift(self) -> float | None:
        """Return the mean divergence of the edited model along the base's answers; None without images."""
        prompt, pictures = self._pictures()
        loaded = self.session().loaded
        found: list[float] = []
        for number, (picture, base) in enumerate(zip(pictures, self._base_answers, strict=True), start=1):
            led = answer_with_logits(loaded, picture, prompt, DRIFT_TOKENS, given=base.tokens)
            found += divergences(base, led, loaded.name, f"image {number}")
        return fmean(found) if found else None

    def _pictures(self) -> tuple[str, list[Image]]:
        return self.data.pictures(self.data.choice, self.drift_images) if self.drift_images else ("", [])


class Trial:
    """One arm on the loaded model; the weights are edited when the first result is not known yet."""

    def __init__(self, runner: TrialRunner, arm: Arm) -> None:
        self._runner = runner
        self._arm = arm
        self._edit: ModelEdit | None = None
        self._edit_seconds = 0.0

    def effect(self) -> Effect:
        """Return the effect of the edit on the weights, and its drift."""
        key = f"{self._arm.name} | effect"
        record = self._runner.recorded(key)
        if record is None:
            edit = self._edited()
            started = time.perf_counter()
            drift = self._runner.drift() if edit.records else None
            heads = [head for one in edit.records for head in one.heads]
            record = {
                "key": key,
                "arm": self._arm.as_dict(),
                "energy_removed": fmean(head.energy_removed for head in heads) if heads else None,
                "relative_change": fmean(head.relative_change for head in heads) if heads else None,
                "drift": drift,
                "seconds": round(self._edit_seconds + time.perf_counter() - started, 3),
            }
            self._runner.record(record)
        return Effect(record["energy_removed"], record["relative_change"], record["drift"], record["seconds"])

    def ask(self, part: str, units: Sequence[str]) -> Told:
        """Return the answers to the questions about some units.

        Args:
            part: the name of these units, the same in every run.
            units: the units.
        """
        key = f"{self._arm.name} | {part}"
        record = self._runner.recorded(key)
        if record is None:
            self._edited()
            started = time.perf_counter()
            answers = dict(self._runner.data.ask(self._runner.session(), units))
            record = {"key": key, "seconds": round(time.perf_counter() - started, 3), "answers": answers}
            self._runner.record(record)
        return Told(record["answers"], record["seconds"])

    def undo(self) -> None:
        """Restore the original weights, and compare them. Raises QkeditError if they differ in a bit."""
        if self._edit is None:
            return
        edit, self._edit = self._edit, None
        edit.disable()
        if not edit.is_undone:
            raise QkeditError(
                "the weights in memory are not the original ones any more",
                where=self._arm.name,
                remedy="run the same command to go on; report it if it happens again",
            )

    def _edited(self) -> ModelEdit:
        if self._edit is None:
            self._runner.session()  # loading is not part of the edit
            started = time.perf_counter()
            self._edit = self._runner.edited(self._arm.steer)
            self._edit_seconds = time.perf_counter() - started
        return self._edit
