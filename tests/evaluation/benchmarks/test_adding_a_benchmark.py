"""Test the benchmark of docs/adding-a-benchmark.md, installed as another package, in every command."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qkedit.cli import completion
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.registry import ENTRY_POINTS, benchmark_named, benchmark_names
from tests.cli.command import qkedit
from tests.packages import installed
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "adding-a-benchmark.md").read_text("utf-8")
FILES = {name: text for name, text in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)}
PROJECT = tomllib.loads(FILES.pop("pyproject.toml"))["project"]
BROKEN = {
    "broken": ("import nowhere\n", "cannot be imported (No module named 'nowhere')"),
    "nothing": ("class Target: pass\n", "is not a subclass of qkedit's Benchmark"),
    "other": ("from counting_benchmark import Counting as Target\n", "calls itself 'counting'"),
    "abstract": (
        "from qkedit.evaluation.benchmarks.benchmark import Benchmark\n"
        "class Target(Benchmark):\n    name = 'abstract'\n",
        "cannot be created (Can't instantiate abstract class",
    ),
}


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    modules = FILES | {f"{name}_module.py": text for name, (text, _) in BROKEN.items()}
    points = PROJECT["entry-points"][ENTRY_POINTS] | {name: f"{name}_module:Target" for name in BROKEN}
    with installed(tmp_path_factory.mktemp("installed"), PROJECT["name"], modules, points, ENTRY_POINTS):
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return sixty questions about twenty images, and answers of two models with different accuracy."""
    generator = random.Random(1)
    counts = [generator.randrange(9) for _ in range(60)]
    rows = [
        {"id": number, "image": f"{number // 3}.png", "question": f"How many of {number}?", "count": str(count)}
        for number, count in enumerate(counts)
    ]
    (tmp_path / "counting.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, skill in (("base", 0.4), ("edited", 0.9)):
        answers = [
            {"id": number, "answer": f"I see {count if generator.random() < skill else count + 2}."}
            for number, count in enumerate(counts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return tmp_path


def scored(data: Path, name: str) -> Path:
    result = qkedit("score", "counting", "--data", data, "--answers", data / f"{name}.jsonl", "--json")
    (data / f"{name}.json").write_text(result.stdout)
    return data / f"{name}.json"


def test_a_new_benchmark_is_listed_after_ours() -> None:
    assert benchmark_names()[0] == "pope"
    assert "counting" in benchmark_names()
    assert completion.benchmarks("coun") == ["counting"]
    assert completion.benchmarks("counting.") == ["counting.few", "counting.many"]
    assert benchmark_named("counting").single_question_set


def test_a_new_benchmark_is_scored_compared_and_gated(data: Path) -> None:
    base, edited = scored(data, "base"), scored(data, "edited")
    split = ("--data", data, "--answers", data / "edited.jsonl", "--split", "many")
    assert qkedit("score", "counting", *split, "--json").document["results"][0]["split"] == "many"
    assert "--split: there is no split 'none'" in qkedit("score", "counting", *split[:-1], "none").sentence()
    questions = [json.loads(line) for line in (data / "counting.jsonl").read_text().splitlines()]
    said = [int(json.loads(line)["answer"][6:-1]) for line in (data / "edited.jsonl").read_text().splitlines()]
    off = np.array(said) - [int(row["count"]) for row in questions]
    metrics = json.loads(edited.read_text())["results"][0]["metrics"]
    assert metrics == {
        "exact": pytest.approx(np.mean(off == 0)),
        "error": pytest.approx(np.sqrt(np.mean(off**2))),
        "over": pytest.approx(np.mean(off > 0)),
    }
    differences = {
        row["metric"]: row for row in qkedit("compare", base, edited, "--json").document["results"][0]["differences"]
    }
    assert {name: row["verdict"] for name, row in differences.items()} == dict.fromkeys(metrics, "better")
    assert differences["error"]["low"] < differences["error"]["value"] < differences["error"]["high"] < 0
    assert differences["error"]["groups"] == 20
    gate = ("gate", edited, "--baseline", base)
    assert qkedit(*gate, "--require", "counting.exact>=0.5", "--no-worse", "counting.error:0.2").code == 0
    assert qkedit(*gate[:2], "--require", "counting.exact>=0.99").code == 3
    assert "exact is a share from 0 to 1" in qkedit(*gate[:2], "--require", "counting.exact>=50").sentence()


def test_a_model_answers_a_new_benchmark(data: Path, tmp_path: Path) -> None:
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    words = ("eval", SMALL_DEMO, "-b", "counting", "--data", data, "--images", tmp_path, "--out", tmp_path / "run")
    result = qkedit(*words, "--limit", "2", "--max-new-tokens", "2", "--device", "cpu", "--json")
    assert result.document["results"][0]["n"] == 2


@pytest.mark.parametrize("name", BROKEN)
def test_an_unusable_benchmark_is_named_and_others_still_work(name: str) -> None:
    with pytest.raises(QkeditError) as error:
        benchmark_named(name)
    assert f"the benchmark {name} of the package counting-benchmark {BROKEN[name][1]}" in str(error.value)
    assert benchmark_named("pope").title == "POPE"


def test_results_of_an_uninstalled_benchmark_are_not_compared(data: Path, tmp_path: Path) -> None:
    base, edited = scored(data, "base"), scored(data, "edited")
    for file in (base, edited):
        file.write_text(file.read_text().replace('"counting"', '"uncounted"'))
    assert "only the benchmark 'uncounted' can sum its items" in qkedit("compare", base, edited).sentence()


def test_items_without_the_values_of_a_metric_are_refused(data: Path) -> None:
    base = scored(data, "base")
    base.write_text(base.read_text().replace('"over"', '"under"'))
    assert "the items lack the numbers that it sums" in qkedit("compare", base, base).sentence()


def test_a_similar_name_is_suggested() -> None:
    with pytest.raises(UsageError, match="there is no benchmark 'countin'; did you mean 'counting'"):
        benchmark_named("countin")
