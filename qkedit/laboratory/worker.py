"""The worker of an experiment: it loads a model once, and runs one arm after another on evaluation sets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.laboratory.answering.generation import EvalSetAnswers, run_eval_set
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.runtime.editing import ModelEdit, edit_as_stored
from qkedit.runtime.generation import LoadedModel, load
from qkedit.steering.plan import make_plan


@dataclass(frozen=True)
class ModelSpec:
    """The model of an experiment.

    Attributes:
        model: a directory, a hub id, an alias or `demo`.
        revision: the revision of a hub model.
        dtype: the dtype of its weights in memory.
        device: the device to run on, by its PyTorch name.
    """

    model: str = "demo"
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """One arm and the evaluation set it answers.

    Attributes:
        arm: the arm.
        scenes: the scenes of the evaluation set.
        share_pictures: as in `run_eval_set`; False for times that can be compared between arms.
    """

    arm: Arm
    scenes: SceneRange
    share_pictures: bool = True


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        answers: the answers to the evaluation set.
        seconds: the time it took.
        energy_removed: share of the query-key products' energy, mean over edited heads; None without an edit.
        relative_change: `‖W_q' − W_q‖ / ‖W_q‖` after rounding, mean over edited heads; None without an edit.
    """

    answers: EvalSetAnswers
    seconds: float
    energy_removed: float | None = None
    relative_change: float | None = None


class Worker:
    """A loaded model that answers evaluation sets; between jobs it has the weights of the base."""

    def __init__(self, model_spec: ModelSpec) -> None:
        self._loaded: LoadedModel = load(
            model_spec.model, revision=model_spec.revision, device=model_spec.device, dtype=model_spec.dtype
        )
        self._checkpoint: Checkpoint = open_checkpoint(resolve(model_spec.model, model_spec.revision))
        self._eval_set = cache(make_eval_set)

    def eval_set(self, scenes: SceneRange) -> EvalSet:
        """Return the evaluation set for these scenes, generated once."""
        return self._eval_set(scenes)

    def run(self, job: Job) -> JobResult:
        """Edit, answer, and restore the base. Raises QkeditError if the arm does not fit the model."""
        eval_set = self.eval_set(job.scenes)
        start = time.perf_counter()
        with one_thread(), self._edited(job.arm) as edit:
            answers = run_eval_set(self._loaded, eval_set, job.arm.plugins, share_pictures=job.share_pictures)
        heads = [head for record in edit.records for head in record.heads]
        return JobResult(
            answers,
            time.perf_counter() - start,
            fmean(head.energy_removed for head in heads) if heads else None,
            fmean(head.relative_change for head in heads) if heads else None,
        )

    def _edited(self, arm: Arm) -> ModelEdit:
        if arm.steer is None:
            return ModelEdit((), ())
        return edit_as_stored(self._loaded.model, make_plan(self._checkpoint, arm.steer))


@contextmanager
def one_thread() -> Iterator[None]:
    """Restrict torch to one thread, so that results do not depend on the number of cores.

    The split of a sum over threads affects its last bits, which now and then change a word.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
