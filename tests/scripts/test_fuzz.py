"""Test that every target of the fuzzer runs without a finding, and that the fuzzer detects faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.registry import benchmark_named
from tests.scripts.loading import SCRIPTS

SEED = 1_000_000
# The number of inputs per target, so that all targets take seconds.
SLOW = {
    "shard": 3,
    "side-files": 3,
    "card": 4,
    "manifest": 8,
    "delta": 4,
    "index": 8,
    "config": 8,
    "loading": 2,
    "results": 10,
    "command-words": 10,
    "system-calls": 10,
    "settings-file": 15,
    "endpoint": 10,
    "signals": 1,
    "chat": 10,
    "http-bytes": 10,
}
NAMES = (
    *SLOW, "header", "plugins-file", "layers", "plugin-words", "pope", "repope", "chair", "mme", "amber",
    "amber-yes-no", "hallusionbench", "coco-caption", "custom", "choice", "requirements", "images", "data-urls",
    "chat-request",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Put the packages of the scripts on the path, like Python for a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.syspath_prepend(SCRIPTS / "benchmarks")  # like the script itself
        yield


def fuzzing(name: str) -> ModuleType:
    return import_module(f"fuzzing.{name}")


def test_every_target_is_tested() -> None:
    assert set(NAMES) == set(fuzzing("registry").TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_has_no_findings(name: str, tmp_path: Path) -> None:
    target = fuzzing("registry").TARGETS[name](tmp_path)
    target.prepare()
    loop = fuzzing("loop")
    try:
        tally = loop.run_target(target, SEED, executions=SLOW.get(name, 25))
        first, again = (target.generate(loop.generator(target, SEED)) for _ in range(2))
    finally:
        target.close()
    assert tally.findings == []
    assert tally.executions == SLOW.get(name, 25)
    assert first == again


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        ("error: a.json: is not JSON; correct it.\n", None),
        ("error: two\nlines.\n", "sentence"),
        ("error: red \x1b[31m.\n", "sentence"),
        ("error: without an end\n", "sentence"),
        ("error: with two ends..\n", "sentence"),
        ("error: unexpected ValueError: x; run again with --debug and report what it prints.\n", "sentence"),
        (f"error: {'x' * 20_000}.\n", "sentence"),
        ("warning: nothing.\n", "sentence"),
        ("", "sentence"),
    ],
)
def test_only_one_sentence_errors_are_accepted(printed: str, kind: str | None) -> None:
    if kind is None:
        fuzzing("judging").check_sentence(printed)
        return
    with pytest.raises(fuzzing("target").Finding, match=kind):
        fuzzing("judging").check_sentence(printed)


@pytest.mark.parametrize(
    "name", ["pope", "repope", "chair", "mme", "amber", "hallusionbench", "coco-caption", "custom", "choice"]
)
def test_seeds_of_the_benchmark_targets_are_accepted(name: str, tmp_path: Path) -> None:
    """Otherwise changed inputs would be refused for another reason, and the scoring would never run."""
    module, seeds = fuzzing("targets.benchmarks"), fuzzing("benchmark_seeds")
    target = fuzzing("registry").TARGETS[name](tmp_path)
    questions = {file: module._plain(content) for file, content in seeds.QUESTIONS[name].items()}
    target.prepare()
    try:
        for rule in benchmark_named(name).rules:
            given = module.Given(questions, module._plain(seeds.ANSWERS[name]), rule, False)
            assert target.check(given).value == "accepted", rule
    finally:
        target.close()


def _raise(error: BaseException) -> None:
    raise error


def _hang() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda: None, "accepted"),
        (lambda: _raise(QkeditError("is not JSON")), "refused"),
        (lambda: _raise(QkeditError("ends twice.")), "sentence"),
        (lambda: _raise(ValueError("x")), "exception"),
        (lambda: _raise(RecursionError()), "exception"),
        (lambda: _raise(MemoryError()), "exception"),
        (lambda: _raise(SystemExit(0)), "exception"),
        (_hang, "hang"),
        (lambda: None, "memory"),
    ],
)
def test_faults_are_found_and_saved(act: Any, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loop = fuzzing("target"), fuzzing("loop")

    class Pretended(module.Target):  # type: ignore[misc, name-defined]
        name, subject, seconds, megabytes = "pretended", "nothing", 0.1, 100

        def generate(self, random: Random) -> bytes:
            return random.randbytes(3)

        def check(self, given: bytes) -> Any:
            return fuzzing("judging").attempt(act)

    peaks = iter((100, 300 if found == "memory" else 100))
    monkeypatch.setattr(loop, "peak_megabytes", lambda: next(peaks))
    target = Pretended(tmp_path)
    tally = loop.run_target(target, 5, executions=1, findings=tmp_path / "findings")
    kinds = [finding["kind"] for finding in tally.findings]
    assert (list(tally.outcomes), kinds) == (
        ([found], []) if found in ("accepted", "refused") else (["found"], [found])
    )
    if kinds:
        saved = json.loads((tmp_path / "findings" / "pretended-5.json").read_bytes())
        assert (saved["target"], saved["seed"], saved["kind"]) == ("pretended", 5, found)
        assert (tmp_path / "findings" / "pretended-5.input").read_bytes() == target.generate(loop.generator(target, 5))


def test_a_file_next_to_the_target_is_a_finding(tmp_path: Path) -> None:
    sandbox = fuzzing("sandbox").Sandbox(tmp_path / "case")
    base, out = sandbox.directory / "base", sandbox.directory / "out"
    base.write_bytes(b"1")
    sandbox.remember()
    out.mkdir()
    (out / "new").write_bytes(b"2")
    sandbox.check(out)
    for change in (
        lambda: base.write_bytes(b"3"),
        lambda: base.unlink(),
        lambda: (sandbox.directory / "outer").mkdir(),
        lambda: base.symlink_to("out"),
    ):
        change()
        with pytest.raises(fuzzing("target").Finding, match="outside"):
            sandbox.check(out)
        sandbox.remember()


def test_a_result_is_written_into_the_document(tmp_path: Path) -> None:
    summary = fuzzing("summary")
    tally = fuzzing("loop").Tally("header")
    tally.outcomes.update({"accepted": 3, "refused": 1200})
    document = summary.summary([tally.as_dict()], start=7, seconds=60.0, jobs=1, work=tmp_path)
    part = summary.render(json.loads(json.dumps(document)))
    assert "1,203 inputs to 1 targets in 1 minutes on 1 core" in part
    assert "no findings" in part
    assert "| `header` |" in part
    page = f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n"
    new = summary.put_into(page, part)
    assert summary.put_into(new, part) == new
    assert (new.startswith("before\n"), new.endswith("after\n"), "old" in new) == (True, True, False)
    with pytest.raises(ValueError, match="has no"):
        summary.put_into("no marks", part)


@pytest.mark.parametrize("name", ["pope", "repope", "mme", "amber-yes-no", "hallusionbench", "custom", "choice"])
def test_seeds_of_a_benchmark_can_be_scored(name: str, tmp_path: Path) -> None:
    """With invalid seeds, all changed files would be refused for the same fault."""
    target = fuzzing("registry").TARGETS[name](tmp_path)
    seeds, files = fuzzing("benchmark_seeds"), fuzzing("targets.benchmarks")
    key = target.seeds or target.benchmark
    given = files.Given(
        questions={file: files._plain(content) for file, content in seeds.QUESTIONS[key].items()},
        answers=files._plain(seeds.ANSWERS[key]),
        rule=files.benchmark_named(target.benchmark).rules[0],
        allow_missing=False,
    )
    assert target.check(given) == "accepted"
