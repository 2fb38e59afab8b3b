"""Test comparisons of two runs: paired items, tests, refusals and warnings."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qkedit.errors import UsageError
from qkedit.evaluation.files.records import CaptionItem, Item, Score
from qkedit.evaluation.files.result_files import ScoredRun
from qkedit.evaluation.files.score_json import score_as_dict
from qkedit.evaluation.statistics.comparison import ComparedSplit, RunComparison, compare
from qkedit.evaluation.statistics.intervals import interval, mcnemar, paired
from qkedit.evaluation.statistics.metrics import metrics_of
from tests.cli.command import qkedit
from tests.evaluation.items import caption_items, yes_no_items


def score(
    items: Sequence[Item], benchmark: str = "pope", split: str | None = "random", rule: str = "official"
) -> Score:
    kind = "variant" if isinstance(items[0], CaptionItem) else "parser"
    metrics = {name: interval(items, metric, resamples=1).value for name, metric in metrics_of(items).items()}
    return Score(benchmark, split, rule, len(items), {}, metrics, {}, tuple(items), rule_kind=kind)


def run(*scores: Score, name: str = "a.json") -> ScoredRun:
    return ScoredRun(Path(name), {}, scores)


def result_file(path: Path, *scores: Score) -> Path:
    results = [score_as_dict(one) for one in scores]
    path.write_text(json.dumps({"schema": 1, "command": "score", "status": "done", "results": results}))
    return path


def only_split(comparison: RunComparison) -> ComparedSplit:
    (split,) = comparison.splits
    return split


def test_each_metric_has_a_difference_and_a_test() -> None:
    a, b = yes_no_items(240, 1, per_group=6), yes_no_items(240, 2, per_group=6, accuracy=0.9)
    split = only_split(compare(run(score(a)), run(score(b))))
    found = {compared.difference.metric: compared.difference for compared in split.metrics}
    assert list(found) == ["accuracy", "precision", "recall", "f1", "yes_ratio", "hr"]
    assert found["f1"] == paired(a, b, "f1")
    assert (found["accuracy"].test, found["accuracy"].p) == ("mcnemar", mcnemar(a, b).p)
    assert (found["accuracy"].low, found["accuracy"].high) == (
        paired(a, b, "accuracy").low,
        paired(a, b, "accuracy").high,
    )
    assert (split.n, split.groups, split.left_out) == (240, 40, (0, 0))


def test_only_items_of_both_runs_are_compared() -> None:
    a, b = yes_no_items(50, 1), yes_no_items(60, 1, accuracy=0.9)
    comparison = compare(run(score(a[10:])), run(score(b[::-1])))
    split = only_split(comparison)
    assert (split.n, split.left_out) == (40, (0, 20))
    assert split.metrics[3].difference.a == paired(a[10:], b[10:50], "f1").a
    assert comparison.warnings == (
        "pope.random: 0 items of the first run and 20 of the second are not in the other and were left out",
    )


def test_p_values_are_corrected_over_all_metrics_with_a_direction() -> None:
    a = run(score(yes_no_items(90, 1)), score(caption_items(60, 1), "chair", None))
    b = run(score(yes_no_items(90, 2)), score(caption_items(60, 2), "chair", None))
    comparison = compare(a, b)
    metrics = [compared for split in comparison.splits for compared in split.metrics]
    without = {compared.difference.metric for compared in metrics if compared.p_corrected is None}
    assert comparison.tests == 8
    assert without == {"yes_ratio", "mean_words"}
    smallest = min(compared.difference.p for compared in metrics if compared.p_corrected is not None)
    assert min(compared.p_corrected for compared in metrics if compared.p_corrected is not None) == min(
        1, 8 * smallest
    )


def test_better_and_worse_follow_the_direction_of_each_metric() -> None:
    a, b = caption_items(400, 1, hallucination=0.3), caption_items(400, 2, hallucination=0.1)
    there = {c.difference.metric: c.verdict for c in only_split(compare(run(score(a)), run(score(b)))).metrics}
    back = {c.difference.metric: c.verdict for c in only_split(compare(run(score(b)), run(score(a)))).metrics}
    assert (there["chair_s"], there["chair_i"], there["mean_words"]) == ("better", "better", "")
    assert (back["chair_s"], back["chair_i"], back["mean_words"]) == ("worse", "worse", "")
    assert there["recall"] == ""


def shorter(items: list[CaptionItem], words: int) -> list[CaptionItem]:
    return [dataclasses.replace(item, words=item.words - words) for item in items]


def without_hallucinations(items: list[CaptionItem]) -> list[CaptionItem]:
    return [dataclasses.replace(item, hallucinated=(), found=item.covered) for item in items]


def silent(items: list[CaptionItem]) -> list[CaptionItem]:
    return [dataclasses.replace(item, hallucinated=(), found=(), covered=()) for item in items]


def test_a_gain_with_shorter_captions_causes_a_warning() -> None:
    items = caption_items(100, 1)
    honest = compare(run(score(items)), run(score(without_hallucinations(items))))
    assert honest.warnings == ()
    (sentence,) = compare(run(score(items)), run(score(shorter(without_hallucinations(items), 2)))).warnings
    assert "chair_s" in sentence
    assert "comes with shorter captions" in sentence
    assert "lost recall" not in sentence
    (sentence,) = compare(run(score(items)), run(score(silent(items)))).warnings
    assert "lost recall" in sentence
    # Shorter captions without a gain cause no warning.
    assert compare(run(score(items)), run(score(shorter(items, 2)))).warnings == ()


@pytest.mark.parametrize(
    ("b", "sentence"),
    [
        (score(yes_no_items(9, 1), "mme"), "share no benchmark and split (pope.random against mme.random)"),
        (score(yes_no_items(9, 1), split="popular"), "share no benchmark and split"),
        (score(yes_no_items(9, 1), rule="vcd"), "pope.random: parser 'official' scored the first run, parser 'vcd'"),
        (score(yes_no_items(20, 1)[9:]), "pope.random: the runs share no item"),
        (score(caption_items(9, 1)), "pope.random: parser 'official' scored the first run, variant 'official'"),
        (score([dataclasses.replace(i, truth="maybe") for i in yes_no_items(9, 1)]), "true of item '0'"),
        (score(yes_no_items(9, 1) * 2), "pope.random: an item occurs twice"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(b: Score, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        compare(run(score(yes_no_items(9, 1))), run(b, name="b.json"))
    assert sentence in str(caught.value)


def test_a_repeated_split_is_refused() -> None:
    twice = run(score(yes_no_items(9, 1)), score(yes_no_items(9, 1), rule="vcd"))
    with pytest.raises(UsageError, match=r"a\.json: holds pope\.random twice"):
        compare(twice, twice)


def test_splits_of_only_one_run_are_named() -> None:
    items = yes_no_items(9, 1)
    comparison = compare(
        run(score(items), score(items, split="popular")), run(score(items), score(items, "mme", None))
    )
    assert comparison.unmatched == ("pope.popular", "mme")
    assert comparison.warnings[0] == "pope.popular is in only one of the runs and was not compared"


def test_different_prompts_and_settings_cause_a_warning() -> None:
    items = score(yes_no_items(9, 1))
    asked = {
        "weights_sha256": "1",
        "plugins": [],
        "prompt": None,
        "dtype": "float32",
        "decoding": {"method": "greedy", "max_new_tokens": {"pope.random": 128}},
    }

    def warned(**different: object) -> tuple[str, ...]:
        other = asked | {"weights_sha256": "2"} | different
        runs = [ScoredRun(Path("run"), {"run": run}, (items,)) for run in (asked, other)]
        return compare(*runs).warnings

    assert warned() == warned(weights_sha256="1", plugins=[{"name": "scr"}]) == ()
    assert warned(plugins=[{"name": "scr"}, {"name": "dscr"}]) == (
        "the runs differ in weights and plug-ins (none against scr + dscr), so neither alone explains a difference",
    )
    assert warned(chat_template={"sha256": "3"}) == ("the runs differ in chat_template, not in the model alone",)
    run = ScoredRun(Path("run"), {"run": asked | {"plugins": [{"name": "scr"}]}}, (items,))
    assert compare(run, ScoredRun(Path("run"), {}, (items,))).a == "run (with scr)"
    assert warned(weights_sha256="1") == ("both runs are of the same weights and plug-ins",)
    assert warned(dtype="bfloat16", prompt="Answer.") == ("the runs differ in prompt, dtype, not in the model alone",)
    # Splits of only one run were not compared.
    assert warned(decoding={"max_new_tokens": {"pope.random": 128, "chair": 512}}) == ()
    assert warned(decoding={"max_new_tokens": {"pope.random": 8}}) == (
        "the runs differ in max_new_tokens, not in the model alone",
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    captions = caption_items(150, 1)
    a = result_file(tmp_path / "a.json", score(yes_no_items(120, 1, per_group=6)), score(captions, "chair", None))
    better = shorter(without_hallucinations(captions), 3)
    (tmp_path / "edited").mkdir()
    b = result_file(
        tmp_path / "edited" / "result.json",
        score(yes_no_items(120, 2, per_group=6)),
        score(better, "chair", None),
    )
    return a, b.parent


def test_the_command_prints_a_table_of_eighty_columns(files: tuple[Path, Path]) -> None:
    found = qkedit("compare", *files)
    lines = found.stdout.splitlines()
    assert found.code == 0
    assert "warning: chair: the gain in chair_s" in found.stderr
    (line,) = [line for line in lines if line.startswith("chair_s ")]
    assert line.split()[-1] == "better"
    assert "pope.random (parser official): 120 items in 20 groups" in lines
    # Only the legend and names of files may be longer: they are not wrapped in a pipe.
    assert max(len(line) for line in lines[:-1] if "/" not in line) <= 80


def test_the_command_writes_json_markdown_and_a_plot(files: tuple[Path, Path], tmp_path: Path) -> None:
    markdown, plot = tmp_path / "pr.md", tmp_path / "plot.svg"
    document = qkedit("compare", *files, "--json", "--markdown", markdown, "--plot", plot).document
    row = document["results"][1]
    by_name = {found["metric"]: found for found in row["differences"]}
    assert document["correction"] == {"method": "holm", "tests": 8}
    assert by_name["chair_s"]["b"] == 0
    assert by_name["chair_s"]["verdict"] == "better"
    assert row["metrics"]["chair_s_difference_high"] == by_name["chair_s"]["high"] < 0
    assert document["written"] == [str(markdown), str(plot)]
    text = markdown.read_text()
    assert "| `chair_s` |" in text
    assert "> **Warning**: chair: the gain" in text
    # Each row of a Markdown table has as many cells as its header.
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {9}
    svg = plot.read_text()
    again = tmp_path / "again.svg"
    assert qkedit("compare", *files, "--plot", again, "--quiet").code == 0
    assert again.read_text() == svg
    assert "<svg" in svg


@pytest.mark.parametrize("arguments", [("compare",), ("gate", "--require=chair_s<=0.5")])
def test_compare_and_gate_do_not_import_torch(files: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    ended = "try:\n    run()\nfinally:\n    assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"import sys\nfrom qkedit.cli.app import run\n{ended}", *arguments]
    command[4:4] = files if arguments[0] == "compare" else files[1:]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr


def test_errors_of_the_command_are_one_sentence(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("answers")
    (tmp_path / "failed.json").write_text('{"error": {"what": "the model is gone"}}')
    (tmp_path / "bare.json").write_text('{"results": [{"benchmark": "pope", "split": null, "metrics": {}}]}')
    for other, code, sentence in (
        ("absent.json", 1, "absent.json: cannot be read (No such file or directory)"),
        ("text.json", 1, "text.json, line 1: is not valid JSON"),
        ("failed.json", 1, "was left by a failed run (the model is gone)"),
        ("bare.json", 1, "results: 0: has no items"),
    ):
        found = qkedit("compare", files[0], tmp_path / other, "--markdown", tmp_path / "pr.md")
        assert found.code == code
        assert sentence in found.sentence()
    assert not (tmp_path / "pr.md").exists()
    found = qkedit("compare", *files, "--markdown", tmp_path / "pr.txt")
    assert (found.code, "--markdown" in found.sentence()) == (2, True)


def test_a_name_that_is_not_utf_8_is_written_to_every_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    odd = files[0].rename(tmp_path / os.fsdecode(b"\xff.json"))
    markdown, plot = tmp_path / "pr.md", tmp_path / "plot.png"
    found = qkedit("compare", odd, files[1], "--markdown", markdown, "--plot", plot, "--json")
    assert found.code == 0, found.stdout
    assert r"\udcff.json" in markdown.read_text("utf-8")
    assert plot.read_bytes().startswith(b"\x89PNG")
