"""Exams and answers small enough to check by hand, and a copy of the demo model that a test may not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from qkedit.laboratory.arms import Arm
from qkedit.laboratory.eval_set import Exam, ExamRange, make_exam
from qkedit.laboratory.generation import ExamAnswers
from qkedit.laboratory.measures import Outcome
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.worker import JobResult
from qkedit.runtime.generation import LoadedModel, load

FEW = ExamRange(3)


@cache
def few_scenes() -> Exam:
    return make_exam(FEW)


@cache
def demo_model() -> LoadedModel:
    """Every test leaves it as it finds it."""
    return load("demo", dtype="float32")


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differing(before: Mapping[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def answers(exam: Exam, captions: Sequence[str], says_yes: Sequence[str] | str) -> ExamAnswers:
    """`captions` in the scenes' order; questions about one of the kinds of `says_yes` get a yes."""
    kinds = {f" {kind} " for kind in says_yes} if not isinstance(says_yes, str) else None
    return ExamAnswers(
        tuple(captions),
        tuple(
            says_yes if kinds is None else "Yes." if any(kind in prompt for kind in kinds) else "No."
            for _, prompt in exam.asked
        ),
    )


def outcome(name: str, exam: Exam, said: ExamAnswers, group: str = "") -> Outcome:
    return scored(Arm(name, group=group), exam, JobResult(said, 1.0))
