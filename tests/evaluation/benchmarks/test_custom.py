"""Test custom questions: yes or no by POPE's rules, objects by CHAIR's with the user's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks import custom
from qkedit.evaluation.files.records import Answer, Question


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


ROW = {"id": "a", "image": "a.jpg", "question": "Is there a cat?", "truth": "yes"}


def test_yes_and_no_are_scored_like_pope(tmp_path: Path) -> None:
    file = write(tmp_path / "questions.jsonl", [ROW, ROW | {"id": 2, "truth": " No "}])
    questions = custom.load_questions(tmp_path)
    assert questions == custom.load_questions(file)
    assert [(question.id, question.truth, question.group) for question in questions] == [
        ("a", "yes", "a.jpg"),
        ("2", "no", "a.jpg"),
    ]
    score = custom.score(questions, [Answer("a", "Yes, no doubt"), Answer("2", "NO")], split="mine")
    assert (score.benchmark, score.split, score.rule) == ("custom", "mine", "official")
    assert score.counts == {"tp": 0, "fp": 1, "tn": 0, "fn": 1}
    assert custom.score(questions, [Answer("a", "Yes"), Answer("2", "NO")], rule="opera").counts["tn"] == 1


def test_objects_are_scored_like_captions() -> None:
    questions = [
        Question("1", "1.jpg", "Describe.", ("cat", "wine glass"), "1.jpg"),
        Question("2", "2.jpg", "Describe.", ("glass",), "2.jpg"),
        Question("3", "3.jpg", "Describe.", (), "3.jpg"),
    ]
    captions = {"1": "Two Cats and a glass, a CAT.", "2": "Three wine glasses on a glass.", "3": "Nothing here."}
    score = custom.score(questions, [Answer(name, text) for name, text in captions.items()])
    assert (score.benchmark, score.split, score.rule_kind, score.rule) == ("custom", None, "variant", "words")
    assert [item.found for item in score.items] == [("cat", "glass", "cat"), ("wine glass", "glass"), ()]
    assert [item.hallucinated for item in score.items] == [("glass",), ("wine glass",), ()]
    assert score.metrics == {"chair_s": 2 / 3, "chair_i": 2 / 5, "recall": 2 / 3, "mean_words": 15 / 3}
    assert score.printed == {}
    with pytest.raises(UsageError, match="captions are not parsed as yes or no"):
        custom.score(questions, [], rule="vcd")
    with pytest.raises(QkeditError, match="1 of 3 questions have no answer, the first is '2'"):
        custom.score(questions, [Answer("1", ""), Answer("3", "")])
    assert custom.score(questions, [Answer("1", ""), Answer("3", "")], allow_missing=True).counts["missing"] == 1


def slow_mentions(objects: list[str], caption: str) -> list[str]:
    """Try every sequence of words from the left, the longest first, and remove the matched ones."""
    words = "".join(sign if sign.isalnum() or sign == "_" else " " for sign in caption.lower()).split()
    found: list[tuple[int, str]] = []
    place = 0
    while place < len(words):
        matches = []
        for name in objects:
            parts = name.split()
            said = words[place : place + len(parts)]
            plurals = [" ".join(parts) + ending for ending in ("", "s", "es")]
            if len(said) == len(parts) and " ".join(said) in plurals:
                # The word itself is tried before the word without its ending.
                matches.append((len(parts), -plurals.index(" ".join(said)), name))
        if matches:
            length, _, name = max(matches)
            found.append((place, name))
            place += length
        else:
            place += 1
    return [name for _, name in found]


@given(
    st.lists(
        st.sampled_from(["cat", "bus", "glass", "wine glass", "gla", "hot dog", "dog", "tie"]), unique=True, min_size=1
    ),
    st.lists(
        st.sampled_from(
            ["cat", "Cats", "bus", "buses", "glass", "glasses", "wine", "hot", "dog", "dogs", "ties", "a", "-", ","]
        )
    ),
)
def test_mentions_are_whole_words_with_the_longest_first(objects: list[str], words: list[str]) -> None:
    caption = " ".join(words)
    assert list(custom.mention_finder(objects)(caption)) == slow_mentions(objects, caption)


def test_words_of_any_language_are_found() -> None:
    mentions = custom.mention_finder(["straße", "кот", "猫"])
    assert mentions("Die STRASSE? die Straße, кот… 猫!") == ("straße", "кот", "猫")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"truth": "maybe"}, "truth is neither 'yes' nor 'no' nor a list of objects"),
        ({"truth": True}, "truth is neither 'yes' nor 'no' nor a list of objects"),
        ({"truth": ["cat", 1]}, "truth is neither 'yes' nor 'no' nor a list of objects"),
        ({"truth": ["cat", " - "]}, "truth is neither 'yes' nor 'no' nor a list of objects"),
        ({"truth": ["cat"]}, "some truths are yes or no and some are lists of objects"),
        ({"id": "a"}, "the id 'a' occurs twice"),
        ({"image": None}, "image is not text"),
    ],
)
def test_broken_questions_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path / "own.jsonl", [ROW, ROW | {"id": "b"} | change])
    with pytest.raises(QkeditError) as caught:
        custom.load_questions(file)
    assert (caught.value.where, caught.value.what) == (f"{file}, line 2", sentence)


def test_objects_of_the_truth_are_read_as_words(tmp_path: Path) -> None:
    truth = ["Wine  Glass", "cat", "CAT", "hot-dog"]
    questions = custom.load_questions(write(tmp_path / "own.jsonl", [ROW | {"truth": truth}]))
    assert questions[0].truth == ("wine glass", "cat", "hot dog")
