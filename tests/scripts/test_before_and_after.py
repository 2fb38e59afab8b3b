"""The comparison of two versions divides the right figures. How fast anything was is not a matter of tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS, load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(SCRIPTS / "benchmarks")
    return load_script("benchmarks/before_and_after")


def test_ratios_are_of_after_to_before(script) -> None:  # type: ignore[no-untyped-def]
    before, after = ([script.CommandRun(seconds, peak_bytes=peak) for seconds in taken] for taken, peak in (
        ((4.0, 2.0, 9.0), 5_000_000), ((3.0, 6.0, 1.0), 7_000_000),
    ))  # fmt: skip
    compared = script.Compared(tuple(before), tuple(after))
    assert (compared.ratio, compared.fastest_ratio) == (3 / 4, 1 / 2)
    assert script.table({"steer": compared}).splitlines()[-1] == (
        "| `steer` | 4.00 s | 3.00 s | 0.750 | 0.500 | 5 MB | 7 MB |"
    )


def test_an_interpreter_without_qkedit_is_named(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    interpreter.chmod(0o755)
    with pytest.raises(script.CommandFailedError, match="has no qkedit"):
        script.compare(str(interpreter), str(interpreter), tmp_path, "all", 1, 1)
