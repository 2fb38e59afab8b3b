"""Test scores of files: the scored splits, and the agreement of registry and modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.benchmark import Benchmark
from qkedit.evaluation.benchmarks.registry import benchmark_named, benchmark_names
from qkedit.evaluation.files.records import RULE_KINDS, Score
from qkedit.evaluation.runs.scoring import score_files
from tests.cli.command import ROOT

SPLITS = ("random", "popular")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return two splits of POPE with the same ids and different labels."""
    directory = tmp_path / "data"
    directory.mkdir()
    for split, labels in zip(SPLITS, (("yes", "no"), ("no", "no")), strict=True):
        rows = [
            {"question_id": number, "image": "a.jpg", "text": f"Is there a {split} {number}?", "label": label}
            for number, label in enumerate(labels, start=1)
        ]
        write(directory / f"coco_pope_{split}.json", rows)
        write(directory / f"coco_repope_{split}.json", rows[1:])
    return directory


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows(**more: object) -> list[dict[str, Any]]:
    return [{"id": number, "answer": "No.", **more} for number in (1, 2)]


def scored(benchmark: str, answers: Path, data: Path, **options: Any) -> dict[str | None, float | None]:
    scores: tuple[Score, ...] = score_files(benchmark_named(benchmark), answers=answers, data=data, **options)
    return {score.split: score.metrics["accuracy"] for score in scores}


def test_only_a_named_split_is_scored(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", rows())
    assert scored("pope", file, data, split="random") == {"random": 0.5}
    assert scored("pope", file, data, split="popular") == {"popular": 1.0}
    assert scored("repope", file, data, split="popular") == {"popular": 1.0}


def test_answers_that_fit_several_splits_are_refused(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", rows())
    with pytest.raises(UsageError, match=r"does not name its split of POPE.*among random, popular"):
        scored("pope", file, data)
    (data / "coco_pope_random.json").unlink()
    assert scored("pope", file, data) == {"popular": 1.0}


def test_a_single_file_of_questions_may_have_any_split_name(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", rows())
    assert scored("pope", file, data / "coco_pope_random.json") == {None: 0.5}
    assert scored("pope", file, data / "coco_pope_random.json", split="mine") == {"mine": 0.5}


def test_answers_may_name_their_split(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", [*rows(split="popular"), *rows(split="random")])
    assert scored("pope", file, data) == {"random": 0.5, "popular": 1.0}
    assert scored("pope", file, data, split="popular") == {"popular": 1.0}
    with pytest.raises(QkeditError, match="has no answers to the split 'adversarial'"):
        scored("pope", file, data, split="adversarial")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({}, "the answer does not name its split, as others do"),
        ({"split": "rnadom"}, "there is no split 'rnadom'"),
        ({"split": ["random"]}, "there is no split ['random']"),
    ],
)
def test_answers_without_a_valid_split_are_refused(
    data: Path, tmp_path: Path, said: dict[str, Any], sentence: str
) -> None:
    file = write(tmp_path / "answers.jsonl", [*rows(split="random"), *rows(**said)])
    with pytest.raises(QkeditError) as caught:
        scored("pope", file, data)
    assert (caught.value.where, caught.value.what) == (f"{file}, line 3", sentence)


def test_the_directory_of_a_run_may_be_scored(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run / "answers.jsonl", [])  # creates the directory
    (run / "run.json").write_text("{}")
    for split in SPLITS:
        write(run / "answers" / f"pope.{split}.jsonl", rows())
    questions = write(tmp_path / "q.jsonl", [{"id": "a", "image": "a.jpg", "question": "Is it?", "truth": "yes"}])
    write(run / "answers" / "custom.jsonl", [{"id": "a", "answer": "Yes.", "finish_reason": "length"}])
    alone = {name: scored("pope", run / "answers" / f"pope.{name}.jsonl", data, split=name)[name] for name in SPLITS}
    assert scored("pope", run, data) == alone
    assert scored("pope", run, data, split="popular") == {"popular": alone["popular"]}
    (score,) = score_files(benchmark_named("custom"), answers=run, data=questions)
    assert (score.metrics["accuracy"], score.counts["cut"]) == (1.0, 1)
    with pytest.raises(QkeditError, match=r"no answers to AMBER; it holds custom, pope\.popular, pope\.random"):
        score_files(benchmark_named("amber"), answers=run, data=data)


def test_a_directory_has_one_file_per_split(data: Path, tmp_path: Path) -> None:
    directory = tmp_path / "answers"
    write(directory / "pope.random.jsonl", rows())
    assert scored("pope", directory, data) == {"random": 0.5}
    write(directory / "popular.json", rows())
    assert scored("pope", directory, data) == {"random": 0.5, "popular": 1.0}
    assert scored("pope", directory, data, split="random") == {"random": 0.5}
    with pytest.raises(QkeditError, match=r"no file of answers to adversarial; rename a file to adversarial\.jsonl"):
        scored("pope", directory, data, split="adversarial")
    write(directory / "random.jsonl", rows())
    with pytest.raises(QkeditError, match=r"both random\.jsonl and pope\.random\.jsonl are answers to random"):
        scored("pope", directory, data)


def test_a_broken_split_is_an_error_without_a_score(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", [*rows(split="random"), *rows(split="popular")[:1]])
    with pytest.raises(QkeditError, match="1 of 2 questions have no answer"):
        scored("pope", file, data)
    assert scored("pope", file, data, allow_missing=True) == {"random": 0.5, "popular": 1.0}


def test_answers_with_questions_of_another_split_are_refused(data: Path, tmp_path: Path) -> None:
    asked = [row | {"prompt": f"Is there a popular {row['id']}?"} for row in rows()]
    with pytest.raises(QkeditError, match="line 1: the answer '1' is to 'Is there a popular 1"):
        scored("pope", write(tmp_path / "answers.jsonl", asked), data, split="random")


def test_unknown_rules_and_benchmarks_are_refused(data: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "answers.jsonl", rows())
    with pytest.raises(UsageError, match="there is no benchmark 'pop'; did you mean 'pope'"):
        benchmark_named("pop")
    with pytest.raises(UsageError, match="--parser: POPE has no parser 'VCD'; did you mean 'vcd'"):
        scored("pope", file, data, rule="VCD")
    with pytest.raises(UsageError, match="choose among judge, string"):
        benchmark_named("hallusionbench").check_rule("official")


@pytest.mark.parametrize("name", benchmark_names())
def test_each_benchmark_fulfils_the_contract(name: str) -> None:
    benchmark = benchmark_named(name)
    assert isinstance(benchmark, Benchmark)
    assert benchmark.name == name
    assert benchmark.rules
    assert benchmark.rule_kind in RULE_KINDS
    assert set(benchmark.aggregates) <= set(benchmark.splits)
    # A benchmark with one file per split must list the existing ones.
    assert (type(benchmark).splits_below is not Benchmark.splits_below) == benchmark.ids_restart_per_split


@pytest.mark.parametrize("name", benchmark_names())
def test_the_document_names_rules_and_aggregates(name: str) -> None:
    text = " ".join((ROOT / "docs" / "evaluation.md").read_text("utf-8").split())
    for word in (name, *benchmark_named(name).rules, *benchmark_named(name).aggregates):
        assert f"`{word}`" in text or f" {word}`" in text, word


def test_scorers_import_no_large_library() -> None:
    """Import each benchmark in a new process."""
    for name in benchmark_names():
        code = (
            "import sys\n"
            "from qkedit.evaluation.benchmarks.registry import benchmark_named\n"
            f"benchmark_named({name!r})\n"
            "print(sorted({module.partition('.')[0] for module in sys.modules}"
            " & {'torch', 'transformers', 'numpy', 'nltk', 'scipy'}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", name
