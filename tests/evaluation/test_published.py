"""Test skips for missing published files: counted at the end, and a failure if the files exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.published import WITHOUT_DATA, SkipCount

TESTS = f"""
import pytest

@pytest.mark.skipif(True, reason="{WITHOUT_DATA}")
def test_marked(): ...

def test_in_its_body(): pytest.skip("{WITHOUT_DATA}: no nltk")

@pytest.mark.skipif(True, reason="another reason")
def test_other(): ...

def test_that_runs(): ...
"""


def run(directory: Path, data: Path | None, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    # A unique name: pytest keeps modules as long as the process runs.
    file = directory / f"test_{directory.name}.py"
    file.write_text(text)
    code = pytest.main(
        [
            str(file),
            "-q",
            "-c",
            "/dev/null",
            "--rootdir",
            str(directory),
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
        ],
        plugins=[SkipCount(data)],
    )
    return int(code), capsys.readouterr().out


@pytest.mark.parametrize("ci", ["", "true"])
def test_skips_are_counted_and_fail_if_the_files_exist(
    ci: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    code, out = run(tmp_path, None, TESTS, capsys)
    assert (code, "2 tests were skipped: " + WITHOUT_DATA in out, "FAILED" in out) == (0, True, False)
    code, out = run(tmp_path, tmp_path, TESTS, capsys)
    assert (code, f"FAILED: {tmp_path} exists" in out) == (1, True)


def test_a_run_without_skips_prints_no_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(tmp_path, tmp_path, "def test_that_runs(): ...", capsys)
    assert (code, WITHOUT_DATA in out) == (0, False)
