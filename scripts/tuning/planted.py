"""A planted optimum for `tune`: answers that depend on one head of the weights in memory, whatever edited them.

One head of the demo model causes the hallucinations: the smaller its query rows are than the stored ones, the fewer
questions about absent objects are answered yes. Every other edited head costs some right answers of both kinds. So the
best edit takes much of that head and nothing else, and an edit that misses it can only harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.laboratory.measures import Measure
from qkedit.laboratory.tuning.data import Answers, AskedModel
from qkedit.runtime.loaded_files import checkpoint_of

LAYER, HEAD = 3, 5
# The shares of questions that the base gets wrong, and what each other edited head adds.
HALLUCINATED, MISSED, HARM, LOST = 0.6, 0.05, 0.02, 0.004
# The change of the planted head, as a share of its norm, that cures all of it.
ENOUGH = 0.4


@dataclass
class Planted:
    """Yes/no questions about images that do not exist; see above.

    Attributes:
        images: the number of images, each with one present and one absent object.
        stored: the query weights of the base, by layer; see `remember`.
        layers: the layers of the model.
        asked: the number of images of each request.
    """

    images: int = 96
    stored: dict[int, torch.Tensor] = field(default_factory=dict)
    layers: list[AttentionLayer] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    described = "planted questions"
    measures: Mapping[str, Measure] = field(
        default_factory=lambda: {
            f"custom.{name}": Measure(f"custom.{name}", "custom", name, name) for name in ("hr", "recall", "accuracy")
        }
    )

    @property
    def choice(self) -> Sequence[str]:
        return [f"{number}.png" for number in range(self.images // 2)]

    @property
    def confirmation(self) -> Sequence[str]:
        return [f"{number}.png" for number in range(self.images // 2, self.images)]

    def remember(self, model: Any) -> None:
        """Take a model's weights for those of the base."""
        self.layers = list(attention_stack(checkpoint_of(model)).layers)
        parameters = dict(model.named_parameters())
        self.stored = {one.index: parameters[one.query.tensor.name].detach().float().clone() for one in self.layers}

    def identity(self) -> dict[str, Any]:
        return {"planted": self.images}

    def ask(self, model: AskedModel, units: Sequence[str]) -> Answers:
        self.asked.append(len(units))
        cured, others = self._edited(model.loaded.model)
        wrong_yes = HALLUCINATED * (1 - cured) + HARM * others
        wrong_no = MISSED + LOST * others
        return {
            f"{unit} {truth}": _flipped(truth, _draw(f"{unit} {truth}") < (wrong_yes if truth == "no" else wrong_no))
            for unit in units
            for truth in ("yes", "no")
        }

    def scores(self, units: Sequence[str], answers: Answers) -> Mapping[str, Score]:
        questions = [Question(f"{unit} {truth}", unit, "?", truth, unit) for unit in units for truth in ("yes", "no")]
        given = [Answer(question.id, answers[question.id]) for question in questions]
        return {"custom": benchmark_named("custom").score(questions, given)}

    def pictures(self, units: Sequence[str], count: int) -> tuple[str, list[Image.Image]]:
        return "What is there?", [Image.fromarray(np.zeros((64, 64, 3), np.uint8)) for _ in units[:count]]

    def _edited(self, model: Any) -> tuple[float, float]:
        """Return how much of the planted head is gone, from 0 to 1, and the number of other heads that changed."""
        cured, others = 0.0, 0
        parameters = dict(model.named_parameters())
        for layer in self.layers:
            weights, stored = parameters[layer.query.tensor.name].detach().float(), self.stored[layer.index]
            size = weights.shape[0] // layer.query_heads
            changes = [
                float((now - before).norm() / before.norm())
                for now, before in zip(weights.split(size), stored.split(size), strict=True)
            ]
            changed = [change > 1e-6 for change in changes]
            if layer.index == LAYER:
                cured = min(1.0, changes[HEAD] / ENOUGH)
                changed[HEAD] = False
            others += sum(changed)
        return cured, others


def _flipped(truth: str, wrong: bool) -> str:
    return {"yes": "no", "no": "yes"}[truth] if wrong else truth


def _draw(text: str) -> float:
    """Return a number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
