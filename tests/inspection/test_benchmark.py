"""Test that the document of the benchmark is complete; speeds are not tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scripts.loading import SCRIPTS, load_script
from tests.steering.checkpoints import weights, write


def test_the_document_names_every_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    script = load_script("benchmark_inspect")
    asked: list[list[str]] = []

    def run(arguments: list[str], threads: int) -> object:
        asked.append(arguments)
        return script.CommandRun(2.0, peak_bytes=300_000_000)

    monkeypatch.setattr(script, "qkedit", run)
    monkeypatch.setattr(script, "import_torch", lambda request: script.CommandRun(1.0, peak_bytes=200_000_000))
    model, report = write(tmp_path / "model", weights()), tmp_path / "inspect.md"
    options = ["--repeats", "1", "--threads", "1", "--layers", "1", "--markdown", str(report)]
    monkeypatch.setattr("sys.argv", ["benchmark_inspect", str(model), *options])
    script.main()
    document = report.read_text()
    assert capsys.readouterr().out == document
    assert "1 layers, 4 heads" in document
    for name in ("inspect`", "--channel symmetric", "--channel antisymmetric", "--offset 5", "--compare", "300 MB"):
        assert name in document
    assert "--offset 0,3,-2" not in document  # its positions have one axis
    assert re.search(r"reading the same bytes \| \d", document)
    assert re.search(r"mathematics of `steer` \| \d", document)
    assert all(arguments[:4] == ["inspect", str(model), "--layers", "1"] for arguments in asked)
