"""Test POPE and RePOPE: parsers against slow copies of their rules, known quirks, and published figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks import pope, repope
from qkedit.evaluation.benchmarks.yes_no import PARSERS
from qkedit.evaluation.files.records import Answer, Question
from tests.evaluation.published import DATA, needs_data

texts = st.lists(
    st.sampled_from(
        ["No", "no", "NO", "not", "Yes", "yes", "n't", "is", "a", " ", " ", ".", ",", "\n", "\t", "!", "’", "ſ"]
    )
).map("".join)


def slow_official(text: str) -> str:
    words, word = [], ""
    for sign in text:
        if sign == ".":
            break
        if sign == " ":
            words.append(word)
            word = ""
        elif sign != ",":
            word += sign
    return "no" if {"No", "no", "not"} & {*words, word} else "yes"


def slow_opera(text: str) -> str:
    kept = "".join(sign for sign in text if sign not in ".,")
    for word in kept.split(" "):
        if word in ("No", "not", "no", "NO") or word[-3:] == "n't":
            return "no"
    return "yes"


def slow_vcd(text: str, truth: str) -> str:
    has = any(text.lower()[place : place + len(truth)] == truth for place in range(len(text) + 1))
    return {True: truth, False: "no" if truth == "yes" else "yes"}[has]


def slow_repope(text: str) -> str | None:
    lower = text.lower()
    starts = [place for place in range(len(lower))]
    if any(lower.startswith("yes", place) for place in starts):
        return "yes"
    return "no" if any(lower.startswith("no", place) for place in starts) else None


@given(texts | st.text(), st.sampled_from(["yes", "no"]))
def test_parsers_equal_their_slow_rules(text: str, truth: str) -> None:
    assert PARSERS["official"](text, truth) == slow_official(text)
    assert PARSERS["opera"](text, truth) == slow_opera(text)
    assert PARSERS["vcd"](text, truth) == slow_vcd(text, truth)
    assert PARSERS["repope"](text, truth) == slow_repope(text)


@pytest.mark.parametrize(
    ("text", "official", "opera", "vcd_if_yes", "vcd_if_no", "of_repope"),
    [
        ("", "yes", "yes", "no", "yes", None),
        ("No", "no", "no", "no", "no", "no"),
        ("no", "no", "no", "no", "no", "no"),
        ("NO", "yes", "no", "no", "no", "no"),
        ("Nope", "yes", "yes", "no", "no", "no"),
        ("None", "yes", "yes", "no", "no", "no"),
        ('"No"', "yes", "yes", "no", "no", "no"),
        ("No!", "yes", "yes", "no", "no", "no"),
        ("No\n", "yes", "yes", "no", "no", "no"),
        ("\tNo", "yes", "yes", "no", "no", "no"),
        ("No.", "no", "no", "no", "no", "no"),
        ("No,it is", "yes", "yes", "no", "no", "no"),
        ("No, there is not", "no", "no", "no", "no", "no"),
        ("  no  ", "no", "no", "no", "no", "no"),
        ("Yes, no doubt", "no", "no", "yes", "no", "yes"),
        ("Yes. There is no cat", "yes", "no", "yes", "no", "yes"),
        ("There is a cat.No", "yes", "yes", "no", "no", "no"),
        ("It is a cat. Not a dog.", "yes", "yes", "no", "no", "no"),
        ("It isn't", "yes", "no", "no", "yes", None),
        ("It isn’t", "yes", "yes", "no", "yes", None),
        ("There is nothing", "yes", "yes", "no", "no", "no"),
        ("I saw it yesterday", "yes", "yes", "yes", "yes", "yes"),
        (".No", "yes", "no", "no", "no", "no"),
        ("N.o", "yes", "no", "no", "yes", None),
        ("N,o", "no", "no", "no", "yes", None),
        ("Non", "yes", "yes", "no", "no", "no"),
        ("Nein", "yes", "yes", "no", "yes", None),
        ("İt is not", "no", "no", "no", "no", "no"),
    ],
)
def test_quirks_are_kept(
    text: str, official: str, opera: str, vcd_if_yes: str, vcd_if_no: str, of_repope: str | None
) -> None:
    for truth, of_vcd in (("yes", vcd_if_yes), ("no", vcd_if_no)):
        assert PARSERS["official"](text, truth) == official
        assert PARSERS["opera"](text, truth) == opera
        assert PARSERS["vcd"](text, truth) == of_vcd
        assert PARSERS["repope"](text, truth) == of_repope


def question(number: int, truth: str) -> Question:
    return Question(
        str(number), f"{number // 6}.jpg", f"Is there a thing {number}?", truth, group=f"{number // 6}.jpg"
    )


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["Yes", "no"])), min_size=1, max_size=40))
def test_metrics_equal_those_of_the_official_script(pairs: list[tuple[str, str]]) -> None:
    questions = [question(number, truth) for number, (truth, _) in enumerate(pairs)]
    answers = [Answer(str(number), text) for number, (_, text) in enumerate(pairs)]
    score = pope.score(questions, answers[::-1], split="random")
    seen = Counter((truth, text.lower()) for truth, text in pairs)
    tp, fp, tn, fn = (seen[key] for key in (("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")))
    assert score.counts == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    assert score.n == len(pairs)
    printed = {"TP": str(tp), "FP": str(fp), "TN": str(tn), "FN": str(fn)}
    printed["Accuracy"] = f"{(tp + tn) / (tp + tn + fp + fn)}"
    if tp + fp:
        printed["Precision"] = f"{float(tp) / float(tp + fp)}"
    if tp + fn:
        printed["Recall"] = f"{float(tp) / float(tp + fn)}"
    if tp:
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        printed["F1 score"] = f"{2 * precision * recall / (precision + recall)}"
    printed["Yes ratio"] = f"{(tp + fp) / len(pairs)}"
    assert score.printed == printed
    assert score.metrics["hr"] == (fp / (fp + tn) if fp + tn else None)
    undefined = [name for name, value in score.metrics.items() if value is None]
    assert bool(undefined) == bool(score.warnings)
    assert [item.id for item in score.items] == [asked.id for asked in questions]


def test_a_zero_denominator_is_null_with_a_warning() -> None:
    score = pope.score([question(1, "yes")], [Answer("1", "No.")])
    assert score.metrics == {
        "accuracy": 0.0,
        "precision": None,
        "recall": 0.0,
        "f1": None,
        "yes_ratio": 0.0,
        "hr": None,
    }
    assert score.warnings == ("precision, f1, hr cannot be calculated: the denominator is zero",)


def test_repope_drops_answers_that_are_neither_yes_nor_no() -> None:
    questions = [question(number, truth) for number, truth in enumerate(["yes", "yes", "no", "no"])]
    answers = [Answer(str(number), text) for number, text in enumerate(["Yes.", "Perhaps", "No.", "I can see one"])]
    score = repope.score(questions, answers, split="random")
    assert (score.rule, score.n) == ("repope", 2)
    assert score.counts == {"tp": 1, "fp": 0, "tn": 1, "fn": 0, "dropped": 2}
    assert score.metrics["accuracy"] == 1.0
    assert score.warnings == ("2 of 4 answers are neither yes nor no and are dropped from every count",)
    assert [item.counted for item in score.items] == [True, False, True, False]
    assert not any(item.right for item in score.items if not item.counted)


def test_answers_to_pope_can_be_scored_with_labels_of_repope() -> None:
    questions = [question(number, "no") for number in (2, 3000)]
    answers = [Answer(str(number), "no") for number in (1, 2, 3, 3000)]
    assert repope.score(questions, answers).counts["tn"] == 2
    with pytest.raises(QkeditError, match="no question has the id '3001'"):
        repope.score(questions, [*answers, Answer("3001", "no")])
    with pytest.raises(QkeditError, match="1 of 2 questions have no answer"):
        repope.score(questions, answers[:3])


def test_an_unknown_parser_is_refused() -> None:
    for module in (pope, repope):
        with pytest.raises(UsageError, match="there is no parser 'strict'"):
            module.score([question(1, "yes")], [Answer("1", "yes")], rule="strict")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


ROW = {"question_id": 7, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"}


def test_questions_are_read_from_lines_and_arrays(tmp_path: Path) -> None:
    expected = (Question("7", "a.jpg", "Is there a cat in the image?", "no", "a.jpg"),)
    assert pope.load_questions(write(tmp_path / "own.json", [ROW]), None) == expected
    (tmp_path / "gqa_pope_seem_random.json").write_text(json.dumps([ROW], indent=4))
    write(tmp_path / "pope_popular.json", [ROW])
    assert pope.load_questions(tmp_path, "gqa-random") == expected
    assert pope.load_questions(tmp_path, "popular") == expected
    assert pope.FILES.splits_in(tmp_path) == ("popular", "gqa-random")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": "maybe"}, "the label 'maybe' is neither 'yes' nor 'no'"),
        ({"label": True}, "label is not text"),
        ({"text": None}, "text is not text"),
        ({"question_id": 6}, "the id '6' occurs twice"),
        ({"question_id": 1.5}, "question_id is neither a whole number nor a name"),
    ],
)
def test_broken_questions_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = write(tmp_path / "coco_pope_random.json", [ROW | {"question_id": 6}, ROW | change])
    with pytest.raises(QkeditError) as caught:
        pope.load_questions(tmp_path, "random")
    assert (caught.value.where, caught.value.what) == (f"{file}, line 2", sentence)


def test_missing_questions_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        QkeditError, match=r"there is no coco_pope_random.json; take it from github.com/AoiDragon/POPE"
    ):
        pope.load_questions(tmp_path, "random")
    with pytest.raises(QkeditError, match="there is no such directory"):
        repope.load_questions(tmp_path / "no", "random")
    for module in (pope, repope):
        with pytest.raises(UsageError, match="no split is given"):
            module.load_questions(tmp_path, None)
        with pytest.raises(UsageError, match="there is no split 'rnadom'"):
            module.load_questions(tmp_path, "rnadom")


def test_answers_without_ids_are_matched_by_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": "is there a cat?", "answer": "yes"}, {"answer": "no"}]
    answers = pope.load_answers(write(tmp_path / "answers.jsonl", rows))
    assert [(answer.id, answer.text, answer.line) for answer in answers] == [("1", "yes", 1), ("2", "no", 2)]
    with pytest.raises(QkeditError, match="line 2: has no 'question_id' or 'id'"):
        pope.load_answers(write(tmp_path / "answers.jsonl", [{"id": 1, "answer": "yes"}, {"answer": "no"}]))
    with pytest.raises(QkeditError, match="line 1: has no 'question_id' or 'id'"):
        pope.load_answers(write(tmp_path / "captions.jsonl", [{"caption": "a cat"}]))


@needs_data
@pytest.mark.parametrize("split", pope.SPLITS)
def test_all_published_questions_are_read(split: str) -> None:
    questions = pope.load_questions(DATA, split)
    assert [asked.id for asked in questions] == [str(number) for number in range(1, 3001)]
    assert Counter(asked.truth for asked in questions) == {"yes": 1500, "no": 1500}


@needs_data
@pytest.mark.parametrize(
    ("split", "rows", "yes"), [("random", 2774, 1159), ("popular", 2727, 1193), ("adversarial", 2684, 1187)]
)
def test_published_labels_of_repope_belong_to_questions_of_pope(split: str, rows: int, yes: int) -> None:
    questions = repope.load_questions(DATA, split)
    assert len(questions) == rows
    asked = {(question.id, question.image, question.prompt) for question in pope.load_questions(DATA, split)}
    assert {(question.id, question.image, question.prompt) for question in questions} <= asked
    score = repope.score(questions, [Answer(str(number), "Yes.") for number in range(1, 3001)], split=split)
    assert score.counts == {"tp": yes, "fp": rows - yes, "tn": 0, "fn": 0}
