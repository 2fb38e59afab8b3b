"""Test MME against a slow copy of the official script, its quirks, and the published example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.mme import scoring as mme
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.records import Answer, Score
from tests.evaluation.published import DATA, needs_data

texts = st.text(alphabet="yesnoYESNO \t.,", max_size=6)


def slow_score(pairs: list[tuple[str, str]]) -> tuple[float | None, float, float | None]:
    """Follow the script over the answers to images whose first truth is yes and whose second is no."""
    right = lines = images_right = 0
    for pair in pairs:
        right_here = 0
        for truth, text in zip(("yes", "no"), pair, strict=True):
            columns = f"a.jpg\tIs it?\t{truth}\t{text}\n".split("\t")
            if len(columns) != 4:
                continue
            lines += 1
            raw = columns[3].lower()
            parsed = raw if raw in ("yes", "no") else next((w for w in ("yes", "no") if raw[:4].count(w)), "other")
            right_here += parsed == truth
        right += right_here
        images_right += right_here == 2
    acc, acc_plus = right / lines if lines else None, images_right / len(pairs)
    return acc, acc_plus, None if acc is None else 0 + acc * 100 + acc_plus * 100


def write_task(directory: Path, task: str, lines: list[tuple[str, ...]]) -> Path:
    file = directory / f"{task}.txt"
    file.write_text("".join("\t".join(columns) + "\n" for columns in lines), "utf-8")
    return file


def task_lines(pairs: list[tuple[str, str]] | int) -> list[tuple[str, ...]]:
    """Return two lines per image, with or without answers."""
    images = range(pairs) if isinstance(pairs, int) else range(len(pairs))
    lines: list[tuple[str, ...]] = []
    for image in images:
        for number, truth in enumerate(("Yes", "No")):
            asked = (f"{image}.jpg", f"Is it {number}?", truth)
            lines.append(asked if isinstance(pairs, int) else (*asked, pairs[image][number]))
    return lines


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_the_score_of_a_task_equals_that_of_the_script(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    directory = tmp_path_factory.mktemp("mme")
    questions = mme.load_questions(write_task(directory, "count", task_lines(len(pairs))), None)
    (directory / "answers").mkdir()
    answers = mme.load_answers(write_task(directory / "answers", "count", task_lines(pairs)))
    score = mme.score(questions, answers, split="count")
    acc, acc_plus, total = slow_score(pairs)
    assert score.metrics == {"acc": acc, "acc_plus": acc_plus, "score": total}
    assert score.printed == ({} if total is None else {"score": f"{total}"})
    assert score.counts["images"] == len(pairs)
    assert len(score.items) == 2 * len(pairs)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("yes", "yes"),
        ("No", "no"),
        ("YES, it is", "yes"),
        ("  no", "no"),
        ("   no", None),
        (" yes", "yes"),
        ("  yes", None),
        ("    yes", None),
        ("", None),
        ("\n", None),
        ("\nyes", "yes"),
        ("I know", None),
        ("know", "no"),
        ("now yes", "no"),
        ("eyes", "yes"),
        ("noyes", "no"),
        ("maybe not", None),
        ("İyes", None),  # its lower case has two characters
        ("it is not", None),
    ],
)
def test_quirks_are_kept(text: str, parsed: str | None) -> None:
    assert mme.parse(text) == parsed


def answers_to(task: str, pairs: list[tuple[str, str]]) -> list[Answer]:
    return [
        Answer(f"{task}/{image}.jpg/{number}", text)
        for image, pair in enumerate(pairs)
        for number, text in enumerate(pair, start=1)
    ]


def test_an_answer_with_a_tab_is_dropped_and_its_image_is_counted(tmp_path: Path) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(2)), None)
    score = mme.score(questions, answers_to("count", [("yes", "no"), ("yes\t", "no")]))
    assert score.metrics == {"acc": 1.0, "acc_plus": 0.5, "score": 150.0}
    assert score.counts == {
        "right": 3,
        "images": 2,
        "images_right": 1,
        "tp": 1,
        "fp": 0,
        "tn": 2,
        "fn": 0,
        "other": 0,
        "dropped": 1,
    }
    assert score.warnings == ("1 of 4 answers have a tab and are dropped, as the official script does",)
    assert score.n == 3


def test_other_answers_are_wrong_and_counted_separately(tmp_path: Path) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(1)), None)
    score = mme.score(questions, answers_to("count", [("perhaps", "yes")]))
    assert score.metrics == {"acc": 0.0, "acc_plus": 0.0, "score": 0.0}
    assert [score.counts[name] for name in ("tp", "fp", "tn", "fn", "other")] == [0, 1, 0, 0, 1]
    assert [(item.parsed, item.right, item.counted) for item in score.items] == [
        (None, False, True),
        ("yes", False, True),
    ]


def test_an_image_with_a_missing_answer_is_not_right(tmp_path: Path) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(2)), None)
    lines = task_lines([("yes", "no"), ("yes", "no")])
    answers = mme.load_answers(write_task(tmp_path, "count", [*lines[:3], lines[3][:3]]))
    with pytest.raises(QkeditError, match=r"1 of 4 questions have no answer, the first is 'count/1\.jpg/2'"):
        mme.score(questions, answers)
    score = mme.score(questions, answers, allow_missing=True)
    assert score.metrics == {"acc": 1.0, "acc_plus": 0.5, "score": 150.0}
    assert score.counts["missing"] == 1


def all_tasks(directory: Path) -> Path:
    for task in mme.TASKS:
        write_task(directory, task, task_lines(3))
    return directory


def test_totals_are_sums_of_tasks(tmp_path: Path) -> None:
    questions = mme.load_questions(all_tasks(tmp_path), None)
    pairs = [("yes", "no"), ("yes", "yes"), ("no", "no")]
    tasks = {task: pairs[: number % 3] + [("yes", "no")] * (3 - number % 3) for number, task in enumerate(mme.TASKS)}
    answers = [answer for task, given in tasks.items() for answer in answers_to(task, given)]
    scores = {score.split: score for score in benchmark_named("mme").scores(questions, answers)}
    assert list(scores) == [*mme.TASKS, "hallucination", "perception", "cognition"]
    for total, parts in mme.AGGREGATES.items():
        expected = 0.0
        for task in parts:
            expected += slow_score(tasks[task])[2] or 0
        assert scores[total].metrics == {"score": expected}
        assert scores[total].printed == {"total score": f"{expected}"}
        assert scores[total].n == 6 * len(parts)


def test_only_answered_tasks_are_scored(tmp_path: Path) -> None:
    questions = mme.load_questions(all_tasks(tmp_path), None)
    answers = [answer for task in mme.HALLUCINATION for answer in answers_to(task, [("yes", "no")] * 3)]
    scores = benchmark_named("mme").scores(questions, answers)
    assert [score.split for score in scores] == [*mme.HALLUCINATION, "hallucination"]
    assert scores[-1].metrics == {"score": 800.0}
    with pytest.raises(QkeditError, match="6 of 6 questions have no answer"):
        mme.score(questions, answers, split="OCR")
    with pytest.raises(QkeditError, match="36 of 60 questions have no answer"):
        mme.score(questions, answers, split="perception")
    partial = mme.score(questions, answers, split="perception", allow_missing=True)
    assert partial.metrics == {"score": None}
    with pytest.raises(QkeditError, match="holds no answer to any question of MME"):
        benchmark_named("mme").scores(questions, [Answer("1", "yes")])


def test_a_total_needs_the_questions_of_all_its_tasks(tmp_path: Path) -> None:
    write_task(tmp_path, "existence", task_lines(1))
    questions = mme.load_questions(tmp_path, None)
    with pytest.raises(QkeditError, match="hallucination: there are no questions of count, position, color"):
        mme.score(questions, answers_to("existence", [("yes", "no")]), split="hallucination")
    with pytest.raises(QkeditError, match=r"there is no count\.txt"):
        mme.load_questions(tmp_path, "hallucination")
    with pytest.raises(UsageError, match="there is no split 'exist'"):
        mme.load_questions(tmp_path, "exist")
    with pytest.raises(UsageError, match="there is no parser 'vcd'"):
        mme.score(questions, [], rule="vcd")


def test_ids_in_the_common_format_contain_the_task(tmp_path: Path) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(1)), None)
    file = tmp_path / "answers.jsonl"
    rows = [{"id": "count/0.jpg/2", "answer": "No"}, {"id": "count/0.jpg/1", "answer": "Yes"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert mme.score(questions, mme.load_answers(file)).metrics["score"] == 200.0


def test_line_ends_and_byte_order_marks_are_ignored(tmp_path: Path) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(2)), None)
    text = write_task(tmp_path, "count", task_lines([("yes", "no"), ("no", "no")])).read_text()
    scores: list[Score] = []
    for content in (
        text,
        "\ufeff" + text,
        text.replace("\n", "\r\n"),
        text.replace("\n", "\r"),
        text + "\n\n",
        text[:-1],
    ):
        (tmp_path / "count.txt").write_bytes(content.encode())
        scores.append(mme.score(questions, mme.load_answers(tmp_path / "count.txt")))
    assert all(score == scores[0] for score in scores)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([("0.jpg", "Is it 0?", "Yes", "yes"), ("0.jpg no tabs",)], "line 2: the line has 1 columns"),
        (
            [("0.jpg", "Is it 1?", "No", "no"), ("0.jpg", "Is it 0?", "Yes", "yes")],
            "line 1: the answer 'count/0.jpg/1' is to",
        ),
        ([("9.jpg", "Is it 0?", "Yes", "yes")], "line 1: no question has the id 'count/9.jpg/1'"),
        ([("0.jpg", "Is it 0?", "Yes", "yes")] * 2, "line 2: the answer 'count/0.jpg/2' is to 'Is it 0?'"),
        ([("0.jpg", "Is it 0?", "Yes", "x" * 1_000_001)], "line 1: the line has"),
    ],
)
def test_broken_answers_are_refused(tmp_path: Path, lines: list[tuple[str, ...]], sentence: str) -> None:
    questions = mme.load_questions(write_task(tmp_path, "count", task_lines(1)), None)
    file = write_task(tmp_path, "count", lines)
    with pytest.raises(QkeditError) as caught:
        mme.score(questions, mme.load_answers(file))
    assert str(caught.value).startswith(f"{file}, {sentence}")


def test_broken_questions_are_refused(tmp_path: Path) -> None:
    for lines, sentence in (
        ([("0.jpg", "Is it?", "Perhaps")], "line 1: the truth 'Perhaps' is neither yes nor no"),
        ([("0.jpg", "Is it?", "Yes")] * 3, "line 3: this is a third question about '0.jpg'"),
        ([], "is empty"),
    ):
        with pytest.raises(QkeditError, match=sentence):
            mme.load_questions(write_task(tmp_path, "count", lines), None)
    with pytest.raises(QkeditError, match="'tasks' is not a task"):
        mme.load_questions(write_task(tmp_path, "tasks", task_lines(1)), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(QkeditError, match=r"has no TASK\.txt"):
        mme.load_answers(tmp_path / "empty")


@needs_data
def test_the_published_example_is_scored_to_the_last_digit(tmp_path: Path) -> None:
    example = json.loads((DATA / "examples" / "mme_lavin.json").read_text())
    for name, responses in example["responses"].items():
        asked = (DATA / "mme" / "questions" / name).read_text().splitlines()
        lines = [f"{line}\t{text}\n" for line, text in zip(asked, responses, strict=True)]
        (tmp_path / name).write_text("".join(lines))
    questions = mme.load_questions(DATA, None)
    scores = {
        score.split: score.metrics["score"]
        for score in benchmark_named("mme").scores(questions, mme.load_answers(tmp_path))
    }
    expected = example["expected"]
    assert {task: scores[task] for task in mme.TASKS} == expected["scores"]
    assert scores["perception"] == expected["perception"]
    assert scores["cognition"] == expected["cognition"]
    assert scores["hallucination"] == expected["hallucination_total"]


@needs_data
def test_all_published_questions_are_read() -> None:
    questions = mme.load_questions(DATA, None)
    assert len(questions) == 2374
    assert len({question.id for question in questions}) == 2374
    assert len({question.group for question in questions}) == 1187
    with pytest.raises(QkeditError, match="has no 'id'"):
        read_answers(DATA / "pope" / "coco_pope_random.json")
