"""Test that the benchmark of `score` generates complete answers and prints a line per benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import qkedit
from tests.scripts.loading import SCRIPTS, load_script


def test_every_benchmark_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))  # like Python for a script
    script = load_script("benchmark_score")
    made = script.tasks(tmp_path, 60, None)
    for task in made.values():
        results = qkedit("score", *task.arguments, "--json").document["results"]
        answered = {(result["benchmark"], item["id"]) for result in results for item in result["items"]}
        assert len(answered) == task.answers
    script.main(["--answers", "28", "--repeats", "1", "--markdown", str(tmp_path / "table.md")])
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    for name in made:
        assert f"| {name} | 28 |" in printed
