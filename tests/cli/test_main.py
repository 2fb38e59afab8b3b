"""Test other ways to start the command line, and misspelled names."""

from __future__ import annotations

import runpy
import sys

import pytest

import qkedit as package
from qkedit.cli.command_table import COMMANDS
from qkedit.errors import counted
from qkedit.evaluation.benchmarks.registry import benchmark_names
from tests.cli.command import qkedit


def test_the_package_runs_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["qkedit", "-V"])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("qkedit", run_name="__main__")
    assert (leaving.value.code, capsys.readouterr().out) == (0, f"qkedit {package.__version__}\n")


def test_dir_lists_lazily_imported_names() -> None:
    assert set(package.__all__) <= set(dir(package))
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steeer"], "No such command 'steeer'; did you mean 'steer'?"),
        (["nope"], "No such command 'nope'; see `qkedit --help`."),
        (["steer", "--layer", "3"], "No such option: --layer; did you mean --layers?"),
        (["steer", "--zzzz"], "No such option: --zzzz; see `qkedit steer --help`."),
    ],
)
def test_a_similar_name_is_suggested(words: list[str], said: str) -> None:
    result = qkedit(*words)
    assert (result.code, result.sentence()) == (2, said)


@pytest.mark.parametrize("command", ["eval", "score", "tune"])
def test_help_names_every_benchmark(command: str) -> None:
    shown = qkedit(command, "--help").stdout
    assert [name for name in benchmark_names() if name not in shown] == []


def test_help_shows_text_as_it_is_written() -> None:
    shown = {words: qkedit(*words.split(), "--help").stdout for words in COMMANDS}
    assert [words for words, page in shown.items() if "\\" in page] == []
    assert "pip install 'qkedit[serve]'" in " ".join(shown["serve"].split())


def test_nouns_agree_with_their_numbers() -> None:
    assert [counted(number, "head") for number in (0, 1, 2)] == ["0 heads", "1 head", "2 heads"]
    assert counted(2, "mismatch", "mismatches") == "2 mismatches"
