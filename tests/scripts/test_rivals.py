"""Test the sentences about the other methods, and that the document has the script's sections."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

from qkedit.evaluation.statistics.intervals import Difference, Interval
from qkedit.laboratory.measures import Figure, Row
from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS / "documents"))  # like Python for a script
    yield load_script("rivals")
    for name in [name for name in sys.modules if name.startswith("laboratory_document")]:
        del sys.modules[name]


def row(name: str, **signs: int) -> Row:
    """Return a row whose differences have this sign; those that are not named include zero."""
    measures = ("chair_s", "recall", "cider", "f1_adversarial", "hr_adversarial")
    return Row(name, (), {measure: figure(0.1 * signs.get(measure, 0)) for measure in measures}, None, None)


def figure(change: float) -> Figure:
    own = Interval("", 0.5, 0.4, 0.6, "bootstrap", 10, 10, 0.95)
    difference = Difference("", 0.5, 0.5, change, change - 0.05, change + 0.05, None, "bootstrap", 10, 10, 0.95)
    return Figure(own, difference=difference)


def test_sentences_follow_the_intervals(script: ModuleType) -> None:
    rows = [
        row("base"),
        row("free", chair_s=-1),
        row("free, random", chair_s=-1),
        row("dear", chair_s=-1, cider=-1),
        row("dear, random", chair_s=1),
        row("bad", chair_s=1),
        row("asked", hr_adversarial=-1),
        row("silent", hr_adversarial=-1, f1_adversarial=-1),
    ]
    lines = list(import_module("laboratory_document.rival_findings").rival_finding_lines(rows, 50))
    said = " ".join(" ".join(lines).split())
    names = [one.split(": ")[1].split(".")[0] for one in said.removeprefix("* ").split(" * ")]
    assert names == ["`free`", "`dear`", "`bad`", "`asked`, `silent`", "`free`", "`asked`"]
    assert "that 50 scenes can show" in said
    assert "about 60 differences" in said


def test_the_document_has_both_sections(script: ModuleType) -> None:
    sections = import_module("laboratory_document.sections")
    document = (ROOT / "docs" / "rivals.md").read_text("utf-8")
    for name in ("findings", ""):
        lines = sections.section(document, script.SCRIPT, name)
        assert len(lines) > 5
        assert sections.with_section(document, script.SCRIPT, name, lines) == document
