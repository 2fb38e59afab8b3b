"""The worker of a search: a loaded model that is edited in memory, asked, and restored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.forced_answers import AnswerWithLogits, answer_with_logits, divergences
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.tuning.data import AskedModel, TuningData
from qkedit.laboratory.worker import one_thread
from qkedit.runtime.copying_heads import copying_heads
from qkedit.runtime.editing import ModelEdit, edit_as_stored
from qkedit.runtime.sink import sink_of
from qkedit.steering.plan import make_plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from qkedit.spectral.sink import Sink
    from qkedit.steering.steer_options import SteerOptions

# The length of the answers along which drift is measured.
DRIFT_TOKENS = 32


@dataclass(frozen=True)
class Measurement:
    """A measurement of an arm: the answers to a part of the questions, or its effect on the model without questions.

    Attributes:
        arm: the arm.
        part: the name of these units, the same in every run; `effect` without units.
        units: the units to ask about.
    """

    arm: Arm
    part: str = "effect"
    units: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of its result in a journal."""
        return f"{self.arm.name} | {self.part}"


class TrialWorker:
    """A model that is loaded when it is first needed; a context manager that restores and unloads it.

    Args:
        model: the model, without edits.
        data: the questions.
        device: the device on which edits are computed.
        drift_images: the number of images on which drift is measured; 0 for none.
        single_thread: whether the CPU's part of the work runs on one thread, so that results do not depend on the
            number of workers.
    """

    def __init__(
        self, model: LocalModel, data: TuningData, device: str, drift_images: int, *, single_thread: bool = False
    ) -> None:
        self._model = model
        self._data = data
        self._device = device
        self._drift_images = drift_images
        self._single_thread = single_thread
        self._opened = ExitStack()
        self._session: AskedModel | None = None
        self._base_answers: list[AnswerWithLogits] = []
        self._arm: Arm | None = None
        self._edit: ModelEdit | None = None
        self._edit_seconds = 0.0

    def __enter__(self) -> Self:
        """Return self; the model is loaded later."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore and unload the model."""
        try:
            self.restore()
        finally:
            self._session, self._base_answers = None, []
            self._opened.close()

    def measure(self, wanted: Measurement) -> dict[str, Any]:
        """Return a measurement in the form of a journal; the arm's edit stays until `restore` or another arm.

        Raises:
            QkeditError: the edit does not fit the model, it cannot answer, or it could not be restored.
        """
        with one_thread() if self._single_thread else nullcontext():
            edit = self._edited(wanted.arm)
            started = time.perf_counter()
            if wanted.units:
                answers = dict(self._data.ask(self._loaded(), wanted.units))
                return {"key": wanted.key, "seconds": round(time.perf_counter() - started, 3), "answers": answers}
            drift = self._drift() if edit.records else None
            heads = [head for one in edit.records for head in one.heads]
            return {
                "key": wanted.key,
                "arm": wanted.arm.as_dict(),
                "energy_removed": fmean(head.energy_removed for head in heads) if heads else None,
                "relative_change": fmean(head.relative_change for head in heads) if heads else None,
                "drift": drift,
                "seconds": round(self._edit_seconds + time.perf_counter() - started, 3),
            }

    def restore(self) -> None:
        """Restore the original weights, and compare them. Raises QkeditError if they differ in a bit."""
        if self._edit is None:
            return
        arm, edit, self._arm, self._edit = self._arm, self._edit, None, None
        edit.disable()
        if not edit.is_undone:
            raise QkeditError(
                "the weights in memory are not the original ones any more",
                where="" if arm is None else arm.name,
                remedy="run the same command to go on; report it if it happens again",
            )

    def _edited(self, arm: Arm) -> ModelEdit:
        """Return the edit of an arm, made unless it is in place."""
        if self._edit is None or self._arm != arm:
            self.restore()
            self._loaded()  # loading is not part of the edit
            started = time.perf_counter()
            self._arm, self._edit = arm, self._made(arm.steer)
            self._edit_seconds = time.perf_counter() - started
        return self._edit

    def _made(self, options: SteerOptions | None) -> ModelEdit:
        """Edit the loaded model as `steer` would edit its checkpoint."""
        if options is None:
            return ModelEdit((), ())
        # The arm names a kind of device; this worker has one of that kind.
        plan = make_plan(self._checkpoint, replace(options, device=self._device))
        if options.spare != "none":
            try:
                plan = plan.sparing(self._copying)
            except UsageError:
                return ModelEdit((), ())  # all its heads copy
        if options.protect:
            plan = replace(plan, sink=self._sink)
        return edit_as_stored(self._loaded().loaded.model, plan)

    def _loaded(self) -> AskedModel:
        """Return the loaded model; when it is loaded, it answers along which drift is measured later."""
        if self._session is None:
            session = self._session = self._opened.enter_context(self._model.session())
            prompt, pictures = self._pictures()
            self._base_answers = [answer_with_logits(session.loaded, one, prompt, DRIFT_TOKENS) for one in pictures]
        return self._session

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        """The checkpoint that the model was loaded from, opened once for all edits."""
        return open_checkpoint(resolve(self._model.name, self._model.revision))

    @cached_property
    def _copying(self) -> Mapping[int, Sequence[int]]:
        """The heads by which the model copies, found by one run of the unedited model for all edits."""
        return copying_heads(self._loaded().loaded.model)

    @cached_property
    def _sink(self) -> Sink:
        """The attention sink, found likewise."""
        return sink_of(self._loaded().loaded.model)

    def _drift(self) -> float | None:
        """Return the mean divergence of the edited model along the base's answers; None without images."""
        prompt, pictures = self._pictures()
        loaded = self._loaded().loaded
        found: list[float] = []
        for number, (picture, base) in enumerate(zip(pictures, self._base_answers, strict=True), start=1):
            led = answer_with_logits(loaded, picture, prompt, DRIFT_TOKENS, given=base.tokens)
            found += divergences(base, led, loaded.name, f"image {number}")
        return fmean(found) if found else None

    def _pictures(self) -> tuple[str, list[Image]]:
        return self._data.pictures(self._data.choice, self._drift_images) if self._drift_images else ("", [])
