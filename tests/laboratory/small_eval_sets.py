"""Small evaluation sets and answers to check by hand, and a copy of the demo that tests must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from qkedit.demo import SMALL_DEMO
from qkedit.demo.worlds import SMALL
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.arms import Arm
from qkedit.laboratory.eval_set import EvalSet, SceneRange, make_eval_set
from qkedit.laboratory.measures import Outcome
from qkedit.laboratory.scoring import scored
from qkedit.laboratory.worker import JobResult
from qkedit.runtime.generation import LoadedModel, load

FEW = SceneRange(3, world=SMALL.name)


@cache
def few_scenes() -> EvalSet:
    return make_eval_set(FEW)


@cache
def demo_model() -> LoadedModel:
    """Check that every test leaves the model unchanged."""
    return load(SMALL_DEMO, dtype="float32")


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differing(before: Mapping[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def answers(eval_set: EvalSet, captions: Sequence[str], says_yes: Sequence[str] | str) -> EvalSetAnswers:
    """Return answers: `captions` in the order of the scenes, and yes to questions about the kinds in `says_yes`."""
    kinds = {f" {kind} " for kind in says_yes} if not isinstance(says_yes, str) else None
    return EvalSetAnswers(
        tuple(captions),
        tuple(
            says_yes if kinds is None else "Yes." if any(kind in prompt for kind in kinds) else "No."
            for _, prompt in eval_set.asked
        ),
    )


def outcome(name: str, eval_set: EvalSet, said: EvalSetAnswers, group: str = "") -> Outcome:
    return scored(Arm(name, group=group), eval_set, JobResult(said, 1.0))
