"""Ask the miniature model which of two objects is nearest, by the probabilities of both answers.

The model has learned captions and yes/no questions, so it need not answer a depth question in words. A forced choice
only compares: the answer whose text has the higher probability counts. There are two forms:

    question   "Which is nearest, the cup or the fork?" → P("The cup") against P("The fork")
    caption    the request to describe the image → P("A kitchen with a cup") against P("A kitchen with a fork")

The captions that the model has learned name objects from front to back, so the second form asks in its own words which
object is in front; the place and the colours, where captions name them, are the scene's own. The larger of two objects
is taken for the nearer one. DSCR's control is DSCR with the same depths at other cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qkedit.demo.captions import noun_phrase
from qkedit.demo.depth_questions import DepthQuestion
from qkedit.demo.scenes import CAPTION_PROMPT, Scene
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.generation import LoadedModel, Prompt, batch_inputs, prompt_text

BASE, TRUE_DEPTH, SHUFFLED_DEPTH = "base", "DSCR", "DSCR, shuffled depth"
ARMS = (BASE, TRUE_DEPTH, SHUFFLED_DEPTH)
QUESTION, CAPTION = "question", "caption"
FORMS = (QUESTION, CAPTION)
# The orders in which a caption names objects, from front to back.
CAPTION_ORDERS = ("nearest", "largest")
QUESTIONS_AT_ONCE = 24
CELLS = 8  # of the miniature model's grid, a side


@dataclass(frozen=True)
class _Asked:
    """One of the two answers to a question, and what it is an answer to.

    The answers of the miniature model begin with a blank, as its template has none at the end.
    """

    scene: Scene
    prompt: str
    answer: str


def forced_choices(
    loaded: LoadedModel,
    scenes: Mapping[int, Scene],
    questions: Sequence[DepthQuestion],
    form: str,
    arm: str,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> list[MeasuredItem]:
    """Return one item per question, whose `accuracy` is 1 for the right choice and 0 for the wrong one.

    Args:
        loaded: the model.
        scenes: the scenes by their numbers.
        questions: the questions.
        form: one of `FORMS`.
        arm: one of `ARMS`.
        watch: called with the number of finished questions and their total.
    """
    items = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        batch = questions[start : start + QUESTIONS_AT_ONCE]
        asked = [
            _asked(scenes[question.scene], question, choice, form) for question in batch for choice in question.choices
        ]
        scores = _with_plugins(loaded, asked, arm)
        for place, question in enumerate(batch):
            first, second = scores[2 * place : 2 * place + 2]
            chosen = question.choices[0] if first >= second else question.choices[1]
            right = (float(chosen == question.truth), 1.0)
            items.append(MeasuredItem(question.id, {"accuracy": right}, question.truth, question.image))
        watch(start + len(batch), len(questions))
    return items


def continuation_scores(loaded: LoadedModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
    """Return the log-probability of the text of each answer to its prompt.

    Answers are forced in `generate`, token by token, so that attached plug-ins act as they do on a request.
    """
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    longest = max(map(len, ids))
    forced = torch.tensor([own + [own[-1]] * (longest - len(own)) for own in ids])
    inputs = batch_inputs(loaded, prompts)
    length, chances = inputs["input_ids"].shape[1], []

    def follow(tokens: Tensor, scores: Tensor) -> Tensor:
        own = forced[:, tokens.shape[1] - length, None].to(scores.device)
        chances.append(scores.float().log_softmax(-1).gather(1, own)[:, 0].cpu())
        return torch.full_like(scores, -torch.inf).scatter_(1, own, 0)

    from transformers import LogitsProcessorList

    settings: dict[str, Any] = {"max_new_tokens": longest, "do_sample": False, "num_beams": 1}
    with torch.no_grad():
        loaded.model.generate(**inputs, **settings, logits_processor=LogitsProcessorList([follow]))
    by_token = torch.stack(chances, dim=1)
    return [float(row[: len(own)].sum()) for row, own in zip(by_token, ids, strict=True)]


def shuffled_depth(scene: Scene) -> np.ndarray:
    """Return the depth of a scene with the cells of the model's grid in another order, which the scene determines."""
    side = scene.depth.shape[0] // CELLS
    cells = scene.depth.reshape(CELLS, side, CELLS, side).swapaxes(1, 2).reshape(-1, side, side)
    cells = cells[np.random.default_rng(scene.number).permutation(len(cells))]
    return cells.reshape(CELLS, CELLS, side, side).swapaxes(1, 2).reshape(scene.depth.shape)


def _asked(scene: Scene, question: DepthQuestion, choice: str, form: str) -> _Asked:
    if form == CAPTION:
        thing = next(thing for thing in scene.objects if thing.kind == choice)
        return _Asked(scene, CAPTION_PROMPT, f" A {scene.theme} with {noun_phrase(thing)}")
    return _Asked(scene, question.text, f" The {choice}")


def _with_plugins(loaded: LoadedModel, asked: Sequence[_Asked], arm: str) -> list[float]:
    """Return the log-probabilities in one arm."""
    prompts = [Prompt(prompt_text(loaded, one.prompt, images=1), (Image.fromarray(one.scene.image),)) for one in asked]
    answers = [one.answer for one in asked]
    if arm == BASE:
        return continuation_scores(loaded, prompts, answers)
    depths = [one.scene.depth if arm == TRUE_DEPTH else shuffled_depth(one.scene) for one in asked]
    refining = DSCR(depth=[torch.from_numpy(depth) for depth in depths], processor=loaded.processor)
    with attach(loaded.model, refining):
        return continuation_scores(loaded, prompts, answers)
