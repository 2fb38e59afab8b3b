"""Test questions with choices: which answers count, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks import choice
from qkedit.evaluation.files.records import Answer
from qkedit.evaluation.statistics.intervals import interval

ROW = {"id": 1, "image": "a.jpg", "question": "Which?", "choices": ["cup", "wine glass", "glass"], "truth": "glass"}


def written(directory: Path, *rows: dict[str, Any]) -> Path:
    file = directory / "choices.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("answer", "right", "named"),
    [
        ("The glass.", True, True),
        ("GLASSES, I think", True, True),
        ("Glass; the glass is nearest", True, True),
        ("The wine glass.", False, True),
        ("The cup", False, True),
        ("The glass, not the cup", False, False),
        ("Yes.", False, False),
        ("A glassy table", False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_right_if_it_names_only_the_true_choice(
    tmp_path: Path, answer: str, right: bool, named: bool
) -> None:
    questions = choice.load_questions(written(tmp_path, ROW))
    score = choice.score(questions, [Answer("1", answer)])
    assert score.metrics == {"accuracy": float(right), "chance": 1 / 3, "named": float(named)}
    assert score.counts == {"right": right, "named": named} | ({} if answer else {"empty": 1})


def test_chance_is_the_mean_over_questions_and_accuracy_has_an_interval(tmp_path: Path) -> None:
    two = {"id": 2, "image": "b.jpg", "question": "Which?", "choices": ["cup", "fork"], "truth": "fork"}
    questions = choice.load_questions(written(tmp_path, ROW, two).parent)
    score = choice.score(questions, [Answer("1", "a cup"), Answer("2", "a fork")], split="mine")
    assert score.metrics == {"accuracy": 0.5, "chance": pytest.approx((1 / 3 + 1 / 2) / 2), "named": 1.0}
    found = interval(score.items, choice.METRICS[0], method="bootstrap")
    assert (found.value, found.low, found.high, found.groups) == (0.5, 0, 1, 2)
    with pytest.raises(QkeditError, match="1 of 2 questions have no answer"):
        choice.score(questions, [Answer("2", "fork")])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"choices": "cup or glass"}, "choices is not a list of texts"),
        ({"choices": ["glass", 7]}, "choices is not a list of texts"),
        ({"choices": ["glass"]}, "not two or more different"),
        ({"choices": ["glass", "Glass"]}, "not two or more different"),
        ({"choices": ["glass", "..."]}, "not two or more different"),
        ({"truth": "fork"}, "truth is not one of the choices"),
        ({"truth": None}, "truth"),
    ],
)
def test_invalid_questions_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(QkeditError, match=sentence):
        choice.load_questions(written(tmp_path, ROW | change))


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QkeditError, match="the id '1' occurs twice"):
        choice.load_questions(written(tmp_path, ROW, ROW))
