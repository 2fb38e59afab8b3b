"""Test caption scores on the command line: gates over hallucination and quality, comparisons, `eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkedit.cli.flags.evaluation import named_tasks
from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.registry import benchmark_named
from tests.cli.command import qkedit
from tests.evaluation.benchmarks.coco_caption.conftest import Programs

SCENES = list(make_scenes(6, seed=1, world=SMALL))
WORDS = ("coco-caption", "--variant", "words")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes")
    write_scenes(SCENES, directory)
    return directory


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two files per run: its captions by the objects they mention, and the scenes' own captions."""
    directory = tmp_path_factory.mktemp("results")
    # The objects of the scenes, and an additional one that most scenes lack.
    said = {
        "base": [f"{scene.caption} A bench." for scene in SCENES],
        "edited": [scene.caption for scene in SCENES],
        "fewer": [scene.caption for scene in SCENES[:-1]],
    }
    files = {}
    for run, captions in said.items():
        answers = directory / f"{run}.jsonl"
        answers.write_text("".join(json.dumps({"id": n, "answer": text}) + "\n" for n, text in enumerate(captions)))
        for name, benchmark in (("objects", ("custom",)), ("quality", WORDS)):
            done = qkedit("score", *benchmark, "--allow-missing", "-a", answers, "--data", data, "--json")
            assert done.code == 0, done.stderr
            files[f"{run} {name}"] = directory / f"{run}-{name}.json"
            files[f"{run} {name}"].write_text(done.stdout)
    return files


def gated(results: dict[str, Path], *requirements: str) -> tuple[int, str]:
    files = [results["edited objects"], results["edited quality"]]
    baselines = ("--baseline", results["base objects"], "--baseline", results["base quality"])
    done = qkedit("gate", *files, *requirements, *(baselines if "--no-worse" in requirements else ()))
    return done.code, done.stdout + done.stderr


def test_one_gate_checks_hallucination_and_quality(results: dict[str, Path]) -> None:
    wanted = ("--no-worse", "chair_s:0", "--no-worse", "cider:0.008", "--no-worse", "custom.recall:0.02")
    code, text = gated(results, *wanted, "--require", "bleu_4>=0.9")
    assert (code, text.count("ok ")) == (0, 4), text
    assert "coco-caption.cider is 10" in text
    code, text = gated(results, "--require", "cider<5")
    assert code == 3
    assert "FAILED" in text


@pytest.mark.parametrize(
    ("requirement", "sentence"),
    [
        (("--no-worse", "cider:0.8"), "write 0.008 for 0.8 points"),
        (("--require", "cider>=105"), "write 1.05 for 105 points"),
    ],
)
def test_cider_in_points_is_refused(results: dict[str, Path], requirement: tuple[str, ...], sentence: str) -> None:
    code, text = gated(results, *requirement)
    assert code == 2
    assert sentence in text


def test_a_gate_may_require_the_bound_of_an_interval(results: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "differences.svg"
    done = qkedit("compare", results["base quality"], results["edited quality"], "--plot", picture, "--json")
    assert done.code == 0, done.stderr
    assert picture.stat().st_size
    (split,) = done.document["results"]
    figures = {one["metric"]: one for one in split["differences"]}
    assert figures["cider"]["verdict"] in ("better", "")
    assert 0 < figures["cider"]["low"] <= figures["cider"]["value"] <= figures["cider"]["high"]
    printed = qkedit("compare", results["base quality"], results["edited quality"]).stdout.splitlines()
    row = next(line.split() for line in printed if line.startswith("cider"))
    assert row[3] == f"{figures['cider']['value']:+.3f}"  # 0.01 is a point in papers
    file = tmp_path / "comparison.json"
    file.write_text(done.stdout)
    assert qkedit("gate", file, "--require", "cider_difference_low>=-0.008").code == 0
    refused = qkedit("gate", file, "--require", "cider_difference_low>=-0.8")
    assert (refused.code, "write -0.008 for -0.8 points" in refused.sentence()) == (2, True)


def test_runs_on_different_images_are_not_compared(results: dict[str, Path]) -> None:
    # The weights of words depend on the images that are scored together.
    refused = qkedit("compare", results["base quality"], results["fewer quality"])
    assert refused.code == 2
    assert "do not agree about what is true" in refused.sentence()


def test_a_metric_of_only_one_run_is_not_compared(results: dict[str, Path], tmp_path: Path) -> None:
    document = json.loads(results["edited quality"].read_bytes())
    for item in document["results"][0]["items"]:
        item["sums"]["meteor"] = [1, 2, 1, 2, 1, 1]
    more = tmp_path / "more.json"
    more.write_text(json.dumps(document))
    for pair in ((results["base quality"], more), (more, results["base quality"])):
        done = qkedit("compare", *pair, "--json")
        assert done.code == 0, done.stderr
        assert "meteor" not in {one["metric"] for one in done.document["results"][0]["differences"]}


def test_eval_asks_a_model_for_captions(data: Path, tmp_path: Path, programs: Programs) -> None:
    programs(meteor="print(' '.join(['2'] * 23 + [chr(10)]) * given.count(chr(10)), end='')")
    benchmarks = ("-b", "coco-caption", "-b", "custom", "--also", "meteor", "--limit", "2", "--max-new-tokens", "4")
    common = ("eval", SMALL_DEMO, *benchmarks, "--data", data, "--images", data / "images", "--out", tmp_path / "out")
    done = qkedit(*common, "--device", "cpu", "--json")
    assert done.code == 0, done.stderr
    captions, objects = done.document["results"]
    assert (captions["benchmark"], captions["variant"], captions["n"]) == ("coco-caption", "official", 2)
    assert captions["metrics"]["meteor"] is not None
    assert objects["benchmark"] == "custom"
    wrong = qkedit(
        "eval", SMALL_DEMO, "-b", "custom", "--also", "meteor", "--data", data, "--images", data, "--out", "x"
    )
    assert (wrong.code, wrong.sentence()) == (
        2,
        "--also: custom questions has no further metric 'meteor'; leave it out.",
    )


def test_a_run_is_scored_by_another_variant_without_java(data: Path, tmp_path: Path) -> None:
    benchmarks = ("-b", "coco-caption", "-b", "pope.popular", "--variant", "words", "--parser", "vcd")
    common = ("--limit", "2", "--max-new-tokens", "4", "--data", data, "--images", data / "images", "--device", "cpu")
    done = qkedit("eval", SMALL_DEMO, *benchmarks, *common, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    captions, questions = done.document["results"]
    assert (captions["variant"], questions["parser"]) == ("words", "vcd")
    again = qkedit(
        "score", "coco-caption", "--answers", tmp_path / "out", "--data", data, "--variant", "words",
        "--allow-missing", "--json",
    )  # fmt: skip
    assert again.document["results"][0]["metrics"] == captions["metrics"]
    wrong = qkedit("eval", SMALL_DEMO, "-b", "pope.popular", "--variant", "words", *common, "--out", tmp_path / "none")
    assert (wrong.code, wrong.sentence()) == (2, "--variant: POPE is scored by parsers; use --parser.")
    unknown = qkedit(
        "eval", SMALL_DEMO, "-b", "coco-caption", "--variant", "wordz", *common, "--out", tmp_path / "none"
    )
    assert unknown.code == 2
    assert "no variant 'wordz'" in unknown.sentence()


def test_benchmarks_without_the_named_rule_keep_their_own(data: Path, tmp_path: Path) -> None:
    """CHAIR has no `words` and COCO captions have no `wordnet`; choices have no other parser than their own."""
    common = ("--limit", "2", "--max-new-tokens", "4", "--data", data, "--images", data / "images", "--device", "cpu")
    both = ("-b", "choice.nearest", "-b", "pope.popular", "--parser")
    done = qkedit("eval", SMALL_DEMO, *both, "vcd", *common, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    own = benchmark_named("choice").rules[0]
    assert [score["parser"] for score in done.document["results"]] == [own, "vcd"]
    unknown = qkedit("eval", SMALL_DEMO, *both, "repopee", *common, "--out", tmp_path / "none")
    assert unknown.code == 2
    assert "no parser 'repopee'" in unknown.sentence()
    with pytest.raises(UsageError, match="CHAIR has no variant 'wordz'"):
        named_tasks(["chair", "coco-caption"], (), data, None, variant="wordz")
    with pytest.raises(QkeditError, match=r"synonyms\.txt"):  # the rule is accepted, and CHAIR looks for its files
        named_tasks(["chair", "coco-caption"], (), data, None, variant="words")
