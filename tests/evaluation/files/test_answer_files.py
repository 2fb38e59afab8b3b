"""Test answer files: every error is named with its line, and harmless differences have no effect."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkedit.errors import QkeditError
from qkedit.evaluation.files import json_rows
from qkedit.evaluation.files.answer_files import join, read_answers
from qkedit.evaluation.files.json_rows import read_rows
from qkedit.evaluation.files.records import Answer, Question

values = st.one_of(st.none(), st.integers(), st.text(max_size=8), st.just([{"a": [1.5, True]}, {}]))
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), min_size=1, max_size=4)
space = st.text(" \t\n", max_size=3)


def refusal(file: Path) -> str:
    with pytest.raises(QkeditError) as caught:
        read_rows(file)
    assert caught.value.where.startswith(str(file))
    assert caught.value.remedy
    return f"{caught.value.where.removeprefix(str(file))}: {caught.value.what}".removeprefix(", ")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(objects, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_lines_may_have_any_line_ends(
    tmp_path: Path, rows: list[dict[str, Any]], escaped: bool, mark: bool, end: str
) -> None:
    file = tmp_path / "rows.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=escaped) + end for row in rows)
    file.write_bytes(text.encode("utf-8-sig" if mark else "utf-8", "surrogatepass"))
    found = read_rows(file)
    assert [row.fields for row in found] == rows
    assert [row.line for row in found] == list(range(1, len(rows) + 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(objects, st.data())
def test_an_array_is_read_with_the_line_of_each_row(
    tmp_path: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    text, lines = data.draw(space) + "[", []
    for number, row in enumerate(rows):
        text += data.draw(space)
        lines.append(text.count("\n") + 1)
        text += json.dumps(row, indent=data.draw(st.sampled_from([None, 1]))) + data.draw(space)
        text += "," if number < len(rows) - 1 else "]"
    file = tmp_path / "rows.json"
    file.write_text(text + data.draw(space))
    found = read_rows(file)
    assert [row.fields for row in found] == rows
    assert [row.line for row in found] == lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.binary(max_size=30) | st.text('[{}]",:1\n a', max_size=20).map(str.encode))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows"
    file.write_bytes(content)
    with suppress(QkeditError):
        assert all(isinstance(row.fields, dict) for row in read_rows(file))


def test_other_line_separators_are_part_of_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": 1, "answer": "a\u2028b\x85c"}\n\n{"id": 2, "answer": ""}', "utf-8")
    assert [(answer.text, answer.line) for answer in read_answers(file)] == [("a\u2028b\x85c", 1), ("", 3)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "is empty"),
        (b'{"id": 1}\n{"id": 2', "line 2: is not valid JSON: expecting ',' delimiter"),
        (b'{"id": 1} {"id": 2}', "line 1: continues after its JSON object"),
        (b'{"id": 1}\n{"id": NaN}', "line 2: is not valid JSON: NaN is not JSON"),
        (b'{"id": -Infinity}', "line 1: is not valid JSON: -Infinity is not JSON"),
        (b'{"id": 1}\n7', "line 2: is not a JSON object"),
        (b'{"id": 1}\n\n"a"', "line 3: is not a JSON object"),
        (b'{"id": 1}\n[{"id": 2}]', "line 2: is not a JSON object"),
        (b'[{"id": 1},\n\n{"id": 2},\n3]', "line 4: is not a JSON object"),
        (b'[{"id": 1},\n{"id": 2}', "line 2: is not valid JSON: a comma or the end of the array is missing"),
        (b'[{"id": 1}\n{"id": 2}]', "line 2: is not valid JSON: a comma or the end of the array is missing"),
        (b'[{"id": 1},\n]', "line 2: is not valid JSON: expecting value"),
        (b"[", "line 1: is not valid JSON: expecting value"),
        (b'[{"id": 1}]\n{"id": 2}', "line 1: continues after its JSON array"),
        (b'[{"id": 1,\n"answer": x}]', "line 2: is not valid JSON: expecting value"),
        (b'{"id": 1}\n{"a": "\xff"}', "line 2: is not UTF-8"),
        (b'{"id": 1}\n\xef\xbb\xbf{"id": 2}', "line 2: is not valid JSON: expecting value"),
        ('{"id": 1}'.encode("utf-16"), "line 1: is not UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "line 1: is nested too deeply"),
        (b"[" * 200_000, "line 1: is nested too deeply"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "line 1: is not valid JSON: a number of 5001 digits is beyond float64"),
        (b"id,answer\n1,yes\n", "line 1: is not valid JSON: expecting value"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(content)
    assert refusal(file).removeprefix(": ").startswith(sentence)


def test_directories_and_missing_files_are_refused(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.jsonl")


def test_an_endless_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "LARGEST_FILE", 1000)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"x" * 1001)
    assert refusal(file) == ": is larger than 1000 bytes"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"answer": "yes"}, "has no 'question_id' or 'id'"),
        ({"id": None, "answer": "yes"}, "id is neither a whole number nor a name"),
        ({"id": 1.0, "answer": "yes"}, "id is neither a whole number nor a name"),
        ({"id": True, "answer": "yes"}, "id is neither a whole number nor a name"),
        ({"id": "", "answer": "yes"}, "id is neither a whole number nor a name"),
        ({"id": "x" * 1001, "answer": "yes"}, "id has 1001 characters, more than 1000"),
        ({"id": [1], "answer": "yes"}, "id is neither a whole number nor a name"),
        ({"id": 1}, "has no 'answer' or 'text'"),
        ({"id": 1, "answer": None}, "answer is not text"),
        ({"id": 1, "answer": 1, "text": "yes"}, "answer is not text"),
        ({"id": 1, "text": "Is there a cat?", "label": "yes"}, "is a question with its label, not an answer"),
        ({"id": 1, "answer": "x" * 1_000_001}, "answer has 1000001 characters, more than 1000000"),
    ],
)
def test_an_invalid_answer_is_refused(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": 0, "answer": ""}\n' + json.dumps(row))
    with pytest.raises(QkeditError) as caught:
        read_answers(file, ids=("question_id",), texts=("text",))
    assert (caught.value.where, caught.value.what) == (f"{file}, line 2", sentence)


def test_keys_of_a_benchmark_have_precedence(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text(
        json.dumps(
            [
                {"question_id": 3, "id": "row", "text": "Is there a cat?", "label": "no", "answer": " Yes\n"},
                {"id": "3b", "text": "no"},
            ]
        )
    )
    answers = read_answers(file, ids=("question_id",), texts=("text",))
    assert [(answer.id, answer.text) for answer in answers] == [("3", " Yes\n"), ("3b", "no")]


QUESTIONS = tuple(Question(str(n), f"{n}.jpg", f"Is there a cat in image {n}?", "yes") for n in range(4))


def answer(identifier: object, line: int = 1, **fields: object) -> Answer:
    return Answer(str(identifier), "yes", line, "a.jsonl", fields)


@given(st.permutations(range(4)))
def test_answers_are_joined_in_the_order_of_the_questions(order: list[int]) -> None:
    joined = join(QUESTIONS, [answer(number) for number in order])
    assert [(question.id, found.id) for question, found in joined.pairs] == [(str(n), str(n)) for n in range(4)]
    assert joined.missing == 0
    assert joined.warnings == ()
    assert joined.counts == {}


@given(st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_missing_answers_are_refused_or_counted(present: set[int]) -> None:
    answers = [answer(number) for number in sorted(present)]
    missing = 4 - len(present)
    with pytest.raises(QkeditError, match=f"{missing} of 4 questions have no answer, the first is '"):
        join(QUESTIONS, answers)
    joined = join(QUESTIONS, answers, allow_missing=True)
    assert [question.id for question, _ in joined.pairs] == [str(number) for number in sorted(present)]
    assert joined.counts == {"missing": missing}
    assert joined.warnings == (f"{missing} of 4 questions have no answer and are left out",)


@pytest.mark.parametrize(
    ("more", "where", "sentence"),
    [
        (answer(9, 7), "a.jsonl, line 7", "no question has the id '9'"),
        (answer(0, 7), "a.jsonl, line 7", "the question '0' is answered twice, first on line 1"),
        (answer(3, 7, image="2.jpg"), "a.jsonl, line 7", "the answer '3' is about the image '2.jpg'"),
        (answer(3, 7, question="Is there a dog?"), "a.jsonl, line 7", "the answer '3' is to 'Is there a dog?'"),
        (answer(3, 7, prompt="Is there a dog?"), "a.jsonl, line 7", "the answer '3' is to 'Is there a dog?'"),
        (Answer("9", ""), "answers", "no question has the id '9'"),
    ],
)
def test_answers_to_other_questions_are_refused(more: Answer, where: str, sentence: str) -> None:
    for allow_missing in (False, True):
        with pytest.raises(QkeditError) as caught:
            join(QUESTIONS, [*map(answer, range(3)), more], allow_missing=allow_missing)
        assert caught.value.where == where
        assert caught.value.what.startswith(sentence)


def test_harmless_differences_of_question_and_image_are_accepted() -> None:
    asked = "USER: is there a  CAT in\nimage 3? Please answer yes or no."
    joined = join(QUESTIONS, [*map(answer, range(3)), answer(3, image="C:\\data\\val/3.jpg", question=asked)])
    assert len(joined.pairs) == 4


def test_answers_to_unscored_questions_are_left_out() -> None:
    joined = join(QUESTIONS[:2], [*map(answer, range(4))], known={"2", "3"})
    assert [question.id for question, _ in joined.pairs] == ["0", "1"]
    with pytest.raises(QkeditError, match="2 of 2 questions have no answer, the first is '0'; answer them all"):
        join(QUESTIONS[:2], [answer(2)], known={"2", "3"}, allow_missing=True)


def test_an_empty_file_of_answers_is_refused() -> None:
    with pytest.raises(QkeditError, match="4 of 4 questions have no answer"):
        join(QUESTIONS, [], allow_missing=True)
    with pytest.raises(QkeditError, match="there are no questions"):
        join((), [])
