"""Test that the documents' Python imports exist, and that their commands can be parsed."""

from __future__ import annotations

import re
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest

from qkedit.cli.application import made_command
from tests.test_readme import command_of, commands

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imported(text: str) -> list[tuple[str, str]]:
    """Return every `from qkedit… import name`, as module and name."""
    lines = re.findall(r"(?m)^from (qkedit[.\w]*) import (.+)$", text)
    return [(module, name.split()[0]) for module, names in lines for name in names.split(",")]


def has(module: str, name: str) -> bool:
    """Return whether `from module import name` works."""
    if hasattr(import_module(module), name):
        return True
    try:
        import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.name))
def test_every_import_from_qkedit_works(file: Path) -> None:
    pytest.importorskip("PIL")
    assert [found for found in imported(file.read_text("utf-8")) if not has(*found)] == []


def test_imports_in_documents_are_found() -> None:
    found = [found for file in DOCUMENTS for found in imported(file.read_text("utf-8"))]
    assert ("qkedit.evaluation.benchmarks.benchmark", "Benchmark") in found
    assert not has("qkedit.evaluation", "pope")


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.name))
def test_every_command_can_be_parsed_and_names_its_model_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QKEDIT_CONFIG", raising=False)
    for line in commands(file.read_text("utf-8")):
        words = list(takewhile(lambda word: word not in (">", "&&", "|"), (word for word in line if word != "…")))
        if "--config" in words:
            continue
        name = command_of(words)
        given = made_command(name).make_context(name, words[len(name.split()) :]).params
        assert not (given.get("argument") and given.get("model")), line
