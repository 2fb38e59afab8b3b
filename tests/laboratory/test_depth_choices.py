"""Test forced choices against probabilities of whole texts, and that the control permutes depths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from qkedit.demo import SMALL_DEMO
from qkedit.demo.depth_questions import depth_questions
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes, with_article
from qkedit.demo.world import World
from qkedit.demo.worlds import SMALL, WORLDS
from qkedit.laboratory import depth_choices
from qkedit.laboratory.depth_choices import (
    BASE,
    CAPTION,
    CELLS,
    QUESTION,
    SHUFFLED_DEPTH,
    TRUE_DEPTH,
    continuation_scores,
    forced_choices,
    shuffled_depth,
)
from qkedit.runtime.generation import LoadedModel, Prompt, load, prompt_text, request_inputs, respond


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32")


@pytest.fixture(scope="module")
def scenes() -> tuple[Scene, ...]:
    return tuple(make_scenes(4, seed=5, world=SMALL))


def slow_score(loaded: LoadedModel, scene: Scene, prompt: str, ids: Sequence[int]) -> float:
    """Return the log probability of tokens after a prompt, from one forward pass over the whole text."""
    inputs = dict(request_inputs(loaded, [Image.fromarray(scene.image)], prompt))
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(ids)])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        chances = loaded.model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
    return float(sum(row[token] for row, token in zip(chances, ids, strict=True)))


def test_scores_equal_those_of_whole_texts(loaded: LoadedModel, scenes: tuple[Scene, ...]) -> None:
    """Test a batch with prompts and answers of different lengths; answers are tokenized by the model's tokenizer."""
    asked = [(scenes[0], CAPTION_PROMPT, " A lake with a duck"), (scenes[1], "Which is nearest?", " The bus")]
    prompts = [Prompt(prompt_text(loaded, prompt, 1), (Image.fromarray(scene.image),)) for scene, prompt, _ in asked]
    found = continuation_scores(loaded, prompts, [answer for *_, answer in asked])
    for score, (scene, prompt, answer) in zip(found, asked, strict=True):
        ids = loaded.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert score == pytest.approx(slow_score(loaded, scene, prompt, ids), abs=1e-4)
    own = respond(loaded, [Image.fromarray(scenes[0].image)], CAPTION_PROMPT)
    assert loaded.processor.tokenizer(f" {own.text}", add_special_tokens=False)["input_ids"] == list(own.ids[:-1])


def test_the_more_likely_answer_is_chosen(loaded: LoadedModel, scenes: tuple[Scene, ...]) -> None:
    questions = depth_questions(scenes, ["nearest"])
    by_number = {scene.number: scene for scene in scenes}
    tokens = loaded.processor.tokenizer
    for form in (CAPTION, QUESTION):
        items = forced_choices(loaded, by_number, questions, form, BASE)
        for question, item in zip(questions, items, strict=True):
            scene, prompt = by_number[question.scene], CAPTION_PROMPT if form == CAPTION else question.text
            before = f" A {scene.theme} with " if form == CAPTION else " The "
            names = [with_article(kind) if form == CAPTION else kind for kind in question.choices]
            scores = [
                slow_score(loaded, scene, prompt, tokens(before + name, add_special_tokens=False)["input_ids"])
                for name in names
            ]
            chosen = question.choices[scores.index(max(scores))]
            assert item.sums["accuracy"] == (float(chosen == question.truth), 1.0)
            assert (item.id, item.truth, item.group) == (question.id, question.truth, question.image)


def test_the_control_permutes_the_cells_of_the_depth_map(loaded: LoadedModel, scenes: tuple[Scene, ...]) -> None:
    def cells(depth: np.ndarray) -> list[bytes]:
        side = depth.shape[0] // CELLS
        return [
            depth[row * side : (row + 1) * side, column * side : (column + 1) * side].tobytes()
            for row in range(CELLS)
            for column in range(CELLS)
        ]

    for scene in scenes:
        true, shuffled = cells(scene.depth), cells(shuffled_depth(scene))
        assert sorted(true) == sorted(shuffled)
        assert sum(one != other for one, other in zip(true, shuffled, strict=True)) > len(true) / 2
        assert shuffled == cells(shuffled_depth(scene))
    questions = depth_questions(scenes, ["nearest"])[:1]
    by_number = {scene.number: scene for scene in scenes}
    for arm in (TRUE_DEPTH, SHUFFLED_DEPTH):
        assert len(forced_choices(loaded, by_number, questions, CAPTION, arm)) == 1


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_right_answer_about_the_nearest_object_begins_the_caption(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    asked: list[str] = []

    def scores(loaded: LoadedModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        asked.extend(answers)
        return [0.0] * len(answers)

    monkeypatch.setattr(depth_choices, "continuation_scores", scores)
    by_number = {scene.number: scene for scene in make_scenes(20, seed=5, world=world)}
    questions = depth_questions(list(by_number.values()), ["nearest"])
    forced_choices(loaded, by_number, questions, CAPTION, BASE)
    begins = 0
    for place, question in enumerate(questions):
        scene = by_number[question.scene]
        if question.truth == scene.kinds[0]:
            right = asked[2 * place + question.choices.index(question.truth)]
            assert f" {scene.caption}".startswith(right)
            begins += 1
    assert begins > 5
