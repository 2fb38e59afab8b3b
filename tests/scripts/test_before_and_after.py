"""Test that the comparison of two versions computes its ratios correctly. Speeds are not tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS, load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(SCRIPTS / "benchmarks")
    return load_script("benchmarks/before_and_after")


def test_ratios_are_after_over_before(script) -> None:  # type: ignore[no-untyped-def]
    before, after = (
        tuple(script.CommandRun(seconds, peak_bytes=peak, cpu_seconds=seconds / part) for seconds in taken)
        for taken, peak, part in (((4.0, 2.0, 9.0), 5_000_000, 2), ((3.0, 6.0, 1.0), 7_000_000, 1))
    )
    compared = script.Compared(before, after)
    assert (compared.ratio, compared.cpu_ratio, compared.least_cpu_ratio) == (3 / 4, 3 / 2, 1)
    assert script.table({"steer": compared}).splitlines()[-1] == (
        "| `steer` | 3 | 4.00 s | 3.00 s | 0.750 | 2.00 s | 3.00 s | 1.500 | 1.000 | 5 MB | 7 MB |"
    )


@pytest.fixture
def ran(script, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # type: ignore[no-untyped-def]
    """Record the interpreter of each run, in order, without running it."""
    interpreters: list[str] = []

    def run(entry: str, arguments: list[str], threads: int, interpreter: str) -> tuple[object, str]:
        interpreters.append(interpreter)
        return script.CommandRun(len(interpreters), cpu_seconds=1.0), ""

    monkeypatch.setattr(script, "run_function", run)
    monkeypatch.setattr(script, "_entry", lambda interpreter: "module:function")
    monkeypatch.setattr(script, "settle", lambda model, cache: None)
    return interpreters


def test_versions_alternate_and_the_first_round_is_not_counted(script, ran, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = tmp_path / "model"
    found = script.compare("old", "new", model, "all", pairs=2, threads=1, minutes=60)
    commands = len(script._commands(model, "all", Path()))
    assert ran == ["old", "new"] * commands + ["new", "old"] * commands + ["old", "new"] * commands
    assert {len(compared.before) for compared in found.values()} == {2}
    first = found["--version"]
    assert [run.seconds for run in first.before] == [2 * commands + 2, 4 * commands + 1]
    assert [run.seconds for run in first.after] == [2 * commands + 1, 4 * commands + 2]
    assert list(tmp_path.iterdir()) == []


def test_complete_pairs_are_reported_when_the_time_is_over(  # type: ignore[no-untyped-def]
    script, ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(script._commands(tmp_path, "all", Path()))
    # Each pair takes one minute: the time is over before the first counted pair of the second command.
    monkeypatch.setattr(script.time, "monotonic", lambda: 60.0 * (len(ran) // 2))
    found = script.compare("old", "new", tmp_path / "model", "all", pairs=3, threads=1, minutes=len(names))
    assert list(found) == [names[0]]
    assert len(ran) == 2 * (len(names) + 1)


def test_an_interpreter_without_qkedit_is_named(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    interpreter.chmod(0o755)
    with pytest.raises(script.CommandFailedError, match="has no qkedit"):
        script.compare(str(interpreter), str(interpreter), tmp_path / "model", "all", 1, 1, 1)
