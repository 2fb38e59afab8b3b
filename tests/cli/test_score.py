"""Test `qkedit score`: output, refusals, and that no model library is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkedit.evaluation.files.records import YesNoItem
from qkedit.evaluation.files.score_json import score_from_dict
from tests.cli.command import ROOT, qkedit


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"question_id": number, "image": "a.jpg", "text": "Is there a cat?", "label": label}
        for number, label in enumerate(("yes", "no", "no"), start=1)
    ]
    write(tmp_path / "coco_pope_random.json", rows)
    return tmp_path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return write(
        tmp_path / "answers.jsonl", [{"id": n, "answer": text} for n, text in enumerate(("yes", "no", "NO"), 1)]
    )


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_score_is_printed_as_a_table(data: Path, answers: Path) -> None:
    done = qkedit("score", "pope", "--answers", answers, "--data", data)
    assert (done.code, done.stderr) == (0, "")
    title, header, row = done.stdout.splitlines()
    assert title.strip() == "POPE, parser official"
    assert header.split() == ["split", "answers", "accuracy", "precision", "recall", "f1", "yes_ratio", "hr"]
    assert row.split() == ["random", "3", "0.6667", "0.5000", "1.0000", "0.6667", "0.6667", "0.5000"]


def test_json_holds_the_score(data: Path, answers: Path) -> None:
    done = qkedit("score", "pope", "-a", answers, "--data", data, "--parser", "opera", "--json")
    assert (done.code, done.stderr) == (0, "")
    document = done.document
    assert [document[key] for key in ("schema", "command", "status", "warnings")] == [1, "score", "done", []]
    (result,) = document["results"]
    assert list(result) == ["benchmark", "split", "parser", "n", "counts", "metrics", "printed", "warnings", "items"]
    score = score_from_dict(result)
    assert (score.rule, score.counts) == ("opera", {"tp": 1, "fp": 0, "tn": 2, "fn": 0})
    assert score.items[0] == YesNoItem("1", "yes", "yes", True, "a.jpg")


def test_per_item_has_one_line_per_answer(data: Path, answers: Path, tmp_path: Path) -> None:
    target = tmp_path / "items.jsonl"
    done = qkedit("score", "pope", "--answers", answers, "--data", data, "--per-item", target)
    assert done.stdout.splitlines()[-1] == f"Written: {target}"
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(line["split"], line["id"], line["parsed"], line["truth"], line["right"]) for line in lines] == [
        ("random", "1", "yes", "yes", True),
        ("random", "2", "no", "no", True),
        ("random", "3", "yes", "no", False),
    ]
    assert {line["benchmark"] for line in lines} == {"pope"}


def test_per_item_has_no_lines_for_totals(tmp_path: Path) -> None:
    for directory, columns in (("questions", ""), ("answers", "\tyes")):
        (tmp_path / directory).mkdir()
        for task in ("existence", "count", "position", "color"):
            text = f"a.jpg\tIs it?\tYes{columns}\na.jpg\tIs it not?\tNo{columns}\n"
            (tmp_path / directory / f"{task}.txt").write_text(text)
    target = tmp_path / "items.jsonl"
    done = qkedit(
        "score", "mme", "--answers", tmp_path / "answers", "--data", tmp_path, "--per-item", target, "--json"
    )
    assert [result["split"] for result in done.document["results"]][-1] == "hallucination"
    assert done.document["results"][-1]["metrics"] == {"score": 200.0}
    assert len(target.read_text().splitlines()) == 8


def test_missing_answers_are_refused_or_counted(data: Path, answers: Path) -> None:
    write(answers, [{"id": 1, "answer": "yes"}])
    refused = qkedit("score", "pope", "--answers", answers, "--data", data)
    assert refused.code == 1
    assert refused.sentence() == (
        f"{answers}: 2 of 3 questions have no answer, the first is '2'; "
        "answer them all, or score the others with --allow-missing."
    )
    done = qkedit("score", "pope", "--answers", answers, "--data", data, "--allow-missing")
    assert done.code == 0
    assert "warning: random: 2 of 3 questions have no answer and are left out" in done.stderr
    document = qkedit("score", "pope", "--answers", answers, "--data", data, "--allow-missing", "--json").document
    assert document["results"][0]["counts"]["missing"] == 2
    assert document["results"][0]["metrics"]["hr"] is None
    assert document["warnings"][0] == "random: 2 of 3 questions have no answer and are left out"


def test_custom_questions_are_read_from_one_file(tmp_path: Path) -> None:
    questions = write(
        tmp_path / "questions.jsonl",
        [
            {"id": "x", "image": "x.jpg", "question": "Describe.", "truth": ["cat"]},
            {"id": "y", "image": "y.jpg", "question": "Describe.", "truth": ["dog"]},
        ],
    )
    answers = write(tmp_path / "a.jsonl", [{"id": "x", "answer": "a cat, a dog"}, {"id": "y", "answer": "dogs"}])
    done = qkedit("score", "custom", "--answers", answers, "--questions", questions, "--json")
    (result,) = done.document["results"]
    assert result["variant"] == "words"
    assert result["metrics"]["chair_s"] == 0.5
    assert result["items"][0]["hallucinated"] == ["dog"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["pope"], 2, "--data: no questions are given"),
        (["pope", "--questions", "none.json"], 2, "--questions: none.json is not a file"),
        (["pop", "--data", "."], 2, "there is no benchmark 'pop'; did you mean 'pope'?"),
        (["pope", "--data", ".", "--variant", "wordnet"], 2, "--variant: POPE is scored by parsers; use --parser."),
        (["chair", "--data", ".", "--parser", "vcd"], 2, "--parser: CHAIR is scored by variants; use --variant."),
        (["pope", "--data", ".", "--parser", "x"], 2, "--parser: POPE has no parser 'x'"),
    ],
)
def test_invalid_requests_are_refused(answers: Path, arguments: list[str], code: int, sentence: str) -> None:
    done = qkedit("score", *arguments, "--answers", answers)
    assert done.code == code
    assert done.sentence().startswith(sentence)


def test_the_file_of_answers_is_not_overwritten(data: Path, answers: Path) -> None:
    before = answers.read_bytes()
    done = qkedit("score", "pope", "--answers", answers, "--data", data, "--per-item", answers)
    assert done.code == 2
    assert answers.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"{",
        b"[[[",
        b'{"id": 1}',
        b'{"id": 1, "answer": 2}',
        b'{"id": 9, "answer": ""}',
        b"[" * 100_000,
    ],
)
def test_broken_answers_leave_no_output(data: Path, answers: Path, content: bytes, tmp_path: Path) -> None:
    answers.write_bytes(content)
    target = tmp_path / "items.jsonl"
    for file in (answers, tmp_path, tmp_path / "none"):
        done = qkedit("score", "pope", "--answers", file, "--data", data, "--per-item", target)
        assert done.code == 1
        assert done.sentence().startswith(str(file))
        assert not target.exists()
    answers.write_bytes(content)
    failed = qkedit("score", "pope", "--answers", answers, "--data", data, "--json")
    assert (failed.code, failed.document["status"]) == (1, "failed")
    assert "results" not in failed.document


def test_scoring_imports_no_model_library(data: Path, answers: Path) -> None:
    code = (
        "import sys\n"
        "from qkedit.cli.application import application\n"
        "application()(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'nltk', 'matplotlib'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    arguments = ["score", "pope", "--answers", str(answers), "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == "[]"
