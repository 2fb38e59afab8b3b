"""Test requirements: their grammar, the figure of a path, and the verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qkedit.errors import UsageError
from qkedit.evaluation.files.result_files import Measured
from qkedit.evaluation.statistics.gate import (
    COMPARISONS,
    Check,
    Requirement,
    gate,
    parse_requirement,
)
from qkedit.evaluation.statistics.guard import Guard, parse_guard
from tests.cli.command import qkedit

RESULT = (
    Measured("pope", "random", {"f1": 0.90, "recall": 0.85, "yes_ratio": 0.5}, "official"),
    Measured("pope", "adversarial", {"f1": 0.80, "recall": 0.78, "precision": None}, "official"),
    Measured("chair", None, {"chair_s": 0.45, "recall": 0.70, "mean_words": 92.0}, "official"),
    Measured("amber", "generative", {"chair": 7.5, "cog": 0.4}, "table"),
)
names = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
numbers = st.floats(0, 1000)
space = st.sampled_from(["", " ", "\t "])


@given(paths, st.sampled_from(sorted(COMPARISONS)), numbers, space, space)
def test_requirements_are_parsed(path: str, comparison: str, limit: float, before: str, after: str) -> None:
    wanted = Requirement(path, comparison, limit)
    assert parse_requirement(str(wanted)) == wanted
    assert parse_requirement(f"{before}{path}{after}{comparison}{before}{limit!r}{after}") == wanted


@given(paths, numbers, space)
def test_tolerances_are_parsed(path: str, tolerance: float, between: str) -> None:
    wanted = Guard(path, tolerance)
    assert parse_guard(str(wanted)) == wanted
    assert parse_guard(f"{path}{between}:{between}{tolerance!r}") == wanted


@given(st.one_of(st.text(max_size=12), st.text("ab.<>=:0123456789e+- ", max_size=10)))
@example("f1>=1e999")
@example("f1>=nan")
@example("f1>=0,8")
@example("f1==0.8")
@example("f1>=0.8%")
@example(">=0.8")
@example("f1:-0.1")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_requirement, parse_guard):
        try:
            found: Any = parse(text)
        except UsageError:
            continue
        number = found.limit if isinstance(found, Requirement) else found.tolerance
        # Accepted texts are a path, a sign and a number, as Python reads numbers.
        sign = found.comparison if isinstance(found, Requirement) else ":"
        left, right = text.split(sign, 1)
        assert (left.strip(), float(right)) == (found.path, number)
        assert math.isfinite(number)


def test_a_number_of_many_digits_takes_linear_time() -> None:
    # An ambiguous pattern would try every division of the digits: quadratic time.
    for text in ("f1:" + "9" * 50_000 + "x", "f1>=" + "9" * 50_000 + "x"):
        for parse in (parse_requirement, parse_guard):
            with pytest.raises(UsageError):
                parse(text)


@pytest.mark.parametrize("text", ["f1>=1e999", "f1>=nan", "f1>=0,8", "f1==0.8", "f1>=0.8%", ">=0.8", "f1", "f1=>1"])
def test_invalid_requirements_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--require"):
        parse_requirement(text)


def checked(text: str) -> Check:
    (found,) = gate(RESULT, [parse_requirement(text)])
    return found


@pytest.mark.parametrize(
    ("text", "path", "passed"),
    [
        ("chair_s<=0.45", "chair.chair_s", True),
        ("chair_s<0.45", "chair.chair_s", False),
        ("chair.chair_s<=0.40", "chair.chair_s", False),
        ("pope.random.f1>=0.9", "pope.random.f1", True),
        ("random.f1>0.9", "pope.random.f1", False),
        ("adversarial.recall>=0.5", "pope.adversarial.recall", True),
        ("chair.recall>=0.7", "chair.recall", True),
        ("yes_ratio<=0.6", "pope.random.yes_ratio", True),
        ("mean_words>=90", "chair.mean_words", True),
        ("pope.precision>=0", "pope.adversarial.precision", False),
        ("amber.chair<=8", "amber.generative.chair", True),
    ],
)
def test_a_path_names_one_figure(text: str, path: str, passed: bool) -> None:
    found = checked(text)
    assert (found.path, found.passed) == (path, passed)


def test_every_figure_has_an_unambiguous_full_name() -> None:
    # The first one's full name is a short name of the others.
    results = (Measured("a", None, {"f1": 0.1}), Measured("a", "b", {"f1": 0.2}), Measured("b", "a", {"f1": 0.3}))
    for measured in results:
        (found,) = gate(results, [Requirement(f"{measured.name}.f1", ">=", 0)])
        assert found.value == measured.metrics["f1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("f1>=0.8", "f1: could mean 2 figures of the result; write pope.random.f1 or pope.adversarial.f1."),
        ("recall>=0.8", "write pope.random.recall or pope.adversarial.recall or chair.recall."),
        ("pope.f1>=0.8", "could mean 2 figures"),
        ("hal<=0.8", "hal: the result has no such metric; choose among pope.random.f1, "),
        ("mme.f1>=0.8", "the result has no such metric"),
        ("chair_s<=40", "chair_s<=40.0: chair_s is a share from 0 to 1; write 0.4 for 40 percent."),
    ],
)
def test_ambiguous_and_unknown_paths_are_refused_with_the_choices(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(text)
    assert sentence in str(caught.value)


def against(text: str, **metrics: float | None) -> Check:
    baseline = (Measured("chair", None, metrics, "official"), *RESULT[:2])
    (found,) = gate(RESULT, no_worse=[parse_guard(text)], baseline=baseline)
    return found


def test_two_results_of_one_split_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^f1: there are 2 such figures; give one result for each split, scored by one"
    ):
        gate([RESULT[0], RESULT[0]], [parse_requirement("f1>=0.5")])


def test_worse_follows_the_direction_of_each_metric() -> None:
    assert against("chair_s:0", chair_s=0.45).passed
    assert against("chair_s:0", chair_s=0.50).passed
    assert not against("chair_s:0.01", chair_s=0.43).passed
    assert against("chair_s:0.03", chair_s=0.43).passed
    # 0.72 − 0.70 exceeds 0.02 in binary floating point, but is within the tolerance.
    assert 0.72 - 0.70 > 0.02
    assert against("chair.recall:0.02", recall=0.72).passed
    assert not against("chair.recall:0.02", recall=0.73).passed
    assert against("chair.recall:0.02", recall=0.10).passed


def test_a_missing_value_fails() -> None:
    assert not against("chair_s:1", chair_s=None).passed
    assert "has no value" in str(checked("precision<=1"))


def test_no_worse_needs_a_direction_and_a_matching_baseline() -> None:
    with pytest.raises(UsageError, match=r"mean_words: neither direction of it is worse"):
        against("mean_words:3", mean_words=95.0)
    with pytest.raises(UsageError, match=r"chair\.chair_s: the baseline has no such metric"):
        against("chair_s:0.1", recall=0.7)
    other_rule = (Measured("chair", None, {"chair_s": 0.4}, "wordnet"),)
    with pytest.raises(UsageError, match="scored by 'wordnet', the result by 'official'"):
        gate(RESULT, no_worse=[Guard("chair_s", 0.1)], baseline=other_rule)


def result_of(*ids: str, n: int | None = None, truths: str = "", questions: str | None = None) -> Measured:
    return Measured("pope", "random", {"f1": 0.9}, "official", n, ids or None, tuple(truths) or None, questions)


@pytest.mark.parametrize(
    ("baseline", "result", "words"),
    [
        (result_of("1", "2", n=2), result_of("1", n=1), "2 and 1 items, of which 1 are in one of them alone"),
        (result_of("1", "2", n=2), result_of("1", "3", n=2), "2 and 2 items, of which 2 are"),
        (result_of(n=3000), result_of(n=2), "3000 and 2 answers"),
        (result_of("1", n=1), result_of(n=2), "1 and 2 answers"),
        (result_of("1", questions="a"), result_of("1", questions="b"), "the wording or the images differ"),
        (result_of(questions="a"), result_of(questions="b"), "the wording or the images differ"),
        (result_of("1", "2", truths="yn"), result_of("1", "2", truths="yy"), "some items have another ground truth"),
    ],
)
def test_a_baseline_with_other_questions_is_refused(baseline: Measured, result: Measured, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        gate([result], no_worse=[Guard("f1", 0.1)], baseline=[baseline])
    assert "measured on different questions" in str(caught.value)


@pytest.mark.parametrize(
    ("baseline", "result"),
    [
        (result_of("1", "2", questions="a"), result_of("1", "2", questions="a")),
        (result_of("1"), result_of(n=1)),  # a missing value does not differ
        (
            result_of("1", "2", n=2),
            result_of("1", "2", n=1),
        ),  # a rule that drops answers counts fewer
    ],
)
def test_a_baseline_with_the_same_questions_is_accepted(baseline: Measured, result: Measured) -> None:
    (found,) = gate([result], no_worse=[Guard("f1", 0)], baseline=[baseline])
    assert found.passed


def result_file(directory: Path, name: str, truth: str, n: int) -> Path:
    """Write a result of two items; the truth of the second is yes."""
    items = [
        {"id": str(number), "parsed": "yes", "truth": truth, "right": True, "group": "", "counted": True}
        for number, truth in enumerate((truth, "yes"))
    ]
    score = {"benchmark": "pope", "split": "random", "parser": "official", "n": n, "metrics": {"f1": 0.5}}
    file = directory / name
    file.write_text(json.dumps({"results": [{**score, "counts": {}, "printed": {}, "warnings": [], "items": items}]}))
    return file


def test_files_with_the_same_ids_and_other_truths_are_refused(tmp_path: Path) -> None:
    one, other = (result_file(tmp_path, name, truth, 2) for name, truth in (("a", "yes"), ("b", "no")))
    assert qkedit("gate", one, "--baseline", one, "--no-worse", "f1:0.1").code == 0
    refused = qkedit("gate", one, "--baseline", other, "--no-worse", "f1:0.1")
    assert refused.code == 2
    assert "some items have another ground truth" in refused.sentence()


def test_a_file_with_more_answers_than_items_is_refused(tmp_path: Path) -> None:
    sound, lying = result_file(tmp_path, "a", "yes", 1), result_file(tmp_path, "b", "yes", 3)
    assert qkedit("gate", sound, "--require", "f1>=0").code == 0  # a rule that drops answers counts fewer
    for arguments in (("gate", lying, "--require", "f1>=0"), ("compare", lying, lying)):
        refused = qkedit(*arguments)
        assert refused.code == 1
        assert "results: 0: n: is 3, and there are 2 items; score the answers again" in refused.sentence()


def test_a_figure_without_answers_fails() -> None:
    nothing = Measured("pope", "random", {"f1": 1.0}, "official", 0)
    (found,) = gate([nothing], [Requirement("f1", ">=", 0)])
    assert (found.passed, found.value) == (False, None)
    (found,) = gate([nothing], no_worse=[Guard("f1", 1)], baseline=[nothing])
    assert not found.passed


def test_a_share_is_refused_for_metrics_in_percent() -> None:
    amber = Measured("amber", "all", {"f1": 74.1, "chair": 7.5, "cog": 0.4}, "official")
    with pytest.raises(UsageError, match=r"f1 of amber is in percent; write 80 for a share of 0\.8"):
        gate([amber], [Requirement("f1", ">=", 0.8)])
    # Small values in percent are accepted: a CHAIR below one, or a loss of half a point.
    assert all(found.passed for found in gate([amber], [Requirement("f1", ">=", 74), Requirement("cog", "<=", 0.5)]))
    assert all(found.passed for found in gate([amber], no_worse=[Guard("f1", 0.5)], baseline=[amber]))


@pytest.fixture
def result(tmp_path: Path) -> Path:
    rows = [{"benchmark": m.benchmark, "split": m.split, "parser": m.rule, "metrics": dict(m.metrics)} for m in RESULT]
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"schema": 1, "command": "score", "status": "done", "results": rows}), "utf-8-sig")
    return file


def test_the_command_ends_with_3_and_names_failed_requirements(result: Path) -> None:
    fine = qkedit("gate", result, "--require", "chair_s<=0.5", "--require", "random.f1>=0.9")
    assert (fine.code, fine.stdout.count("ok ")) == (0, 2)
    failed = qkedit("gate", result.parent, "--require", "chair_s<=0.40", "--require", "random.f1>=0.9")
    assert failed.code == 3
    assert failed.stdout.splitlines()[0] == "FAILED  chair_s<=0.4: chair.chair_s is 0.45"
    document = qkedit("gate", result, "--require", "chair_s<=0.40", "--require", "random.f1>=0.9", "--json").document
    assert (document["status"], document["passed"]) == ("failed", False)
    assert document["error"]["mismatches"] == ["chair_s<=0.4"]
    assert [check["passed"] for check in document["checks"]] == [False, True]
    against_itself = qkedit("gate", result, "--baseline", result, "--no-worse", "chair_s:0")
    assert against_itself.stdout == "ok      chair_s:0.0: chair.chair_s is 0.45 against 0.45 in the baseline\n"


def test_requirements_may_be_in_a_configuration_file(result: Path, tmp_path: Path) -> None:
    for text in ("require: chair_s<=0.4\n", "require: [random.f1>=0.9, chair_s<=0.4]\n"):
        (tmp_path / "gate.yaml").write_text(text)
        found = qkedit("gate", result, "--config", tmp_path / "gate.yaml", "--json")
        assert found.code == 3
        assert found.document["error"]["mismatches"] == ["chair_s<=0.4"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "nothing is required"),
        (("--require", "f1>=0.8"), 2, "could mean 2 figures"),
        (("--require", "chair_s=<0.8"), 2, "is not a requirement"),
        (("--no-worse", "chair_s:0.1"), 2, "one of them is given alone"),
        (("--require", "chair_s<=0.5", "--baseline", "result.json"), 2, "one of them is given alone"),
        (("--baseline", "absent.json", "--no-worse", "chair_s:0.1"), 1, "absent.json: cannot be read"),
    ],
)
def test_errors_of_the_command_are_one_sentence(
    result: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.chdir(result.parent)
    found = qkedit("gate", result, *arguments)
    assert found.code == code
    assert sentence in found.sentence()


@pytest.mark.parametrize(
    "results", ["3", "[]", "[1]", '[{"benchmark": "a"}]', '[{"benchmark": "a", "metrics": {"f1": "0.9"}}]',
                '[{"benchmark": "a", "metrics": {"f1": NaN}}]', '[{"benchmark": "a", "metrics": {"f1": true}}]']
)  # fmt: skip
def test_an_invalid_result_file_is_refused(tmp_path: Path, results: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(f'{{"results": {results}}}')
    found = qkedit("gate", file, "--require", "f1>=0")
    assert found.code == 1
    assert found.sentence().startswith(str(file))


ROW = '{"benchmark": "pope", "split": null, "n": 1, "metrics": {"f1": 0.9}}'


def with_f1(value: str) -> str:
    return f'{{"results": [{ROW.replace("0.9", value)}]}}'


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"status": "failed", "results": [ROW]}', "was left by a failed run"),
        ('{"status": "failed", "error": {"what": "no more"}, "results": [ROW]}', "by a failed run (no more)"),
        ('{"results": [ROW], "results": [ROW]}', "the key 'results' occurs twice"),
        (with_f1('0.1, "f1": 0.9'), "the key 'f1' occurs twice"),
        (with_f1("1" * 400), "a number of 400 digits is beyond float64"),
        (with_f1("1e400"), "1e400 is beyond float64"),
        (with_f1("85"), "pope.f1: is 85, and not a share from 0 to 1"),
        (with_f1("-0.1"), "pope.f1: is -0.1, and not a share"),
        ('{"results": [ROW]}'.replace("ROW", ROW.replace("1,", "-1,")), "n: is not a whole number"),
        ('{"results": [ROW]}'.replace("ROW", ROW.replace("1,", "true,")), "n: is not a whole number"),
    ],
)
def test_a_contradictory_result_is_refused(tmp_path: Path, document: str, words: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(document.replace("ROW", ROW))
    for arguments in (("--require", "f1>=0"), ("--no-worse", "f1:1", "--baseline", file)):
        found = qkedit("gate", file, *arguments)
        assert found.code == 1
        assert words in found.sentence()


def test_no_worse_is_refused_for_runs_with_other_questions(tmp_path: Path) -> None:
    """Compare files: a run of two questions with one of three, and the same number with other texts."""
    for name, ids, words in (("a", "123", "x"), ("b", "12", "x"), ("c", "123", "y")):
        row = {"benchmark": "pope", "split": "random", "parser": "official", "n": len(ids), "metrics": {"f1": 0.9}}
        asked_of = {"pope.random": {"n": len(ids), "sha256": words}}
        document = {"results": [row | {"items": [{"id": one} for one in ids]}], "run": {"questions": asked_of}}
        (tmp_path / name).write_text(json.dumps(document))
    tolerance = ("--no-worse", "f1:0.5", "--baseline", tmp_path / "a")
    for name, code, words in (("a", 0, ""), ("b", 2, "3 and 2 items"), ("c", 2, "the wording")):
        found = qkedit("gate", tmp_path / name, *tolerance)
        assert (found.code, words in found.stderr) == (code, True)


def test_a_directory_without_a_result_is_refused(tmp_path: Path) -> None:
    assert "holds no result.json, as a finished run does" in qkedit("gate", tmp_path, "--require", "f1>=0").sentence()
