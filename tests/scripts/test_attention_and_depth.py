"""Test the sections about attention and depth: their lines, and their positions in the document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest

from qkedit.demo.depth_questions import DepthQuestion
from qkedit.errors import QkeditError
from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis, LayerAttention, MentionRatio, Shares
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.evaluation.statistics.auroc import auroc
from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script

HALVES = Shares(0.5, 0.05, 0.25, 0.15, 0.05)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS / "documents"))  # like Python for a script
    yield load_script("attention_and_depth")
    for name in [name for name in sys.modules if name.startswith("laboratory_document")]:
        del sys.modules[name]


def test_a_diagnosis_is_written_as_markdown(script: ModuleType) -> None:
    mentions = (
        MentionRatio("scene 0", "cup", "cup", False, 3, 1, 0.9),
        MentionRatio("scene 1", "bus", "bus", True, 4, 1, 0.4),
    )
    layers = (LayerAttention(0, "linear_attention", None), LayerAttention(1, "full_attention", HALVES, HALVES, None))
    told = auroc([-0.9, -0.4], [False, True], ["a", "b"])
    lines = list(script.attention_lines(AttentionDiagnosis(2, 9, layers, mentions, 0, (1,), 0.25, told, None)))
    row = "| 1 | 50.0 | 5.0 | 25.0 | 15.0 | 5.0 | 10.0 | 50.0 | 30.0 | 10.0 |"
    assert lines.count(row) == 2
    assert not any(line.startswith("| 0 |") for line in lines)
    assert "* Layers 0: linear attention; they have no attention to measure." in lines
    assert "* by a low ratio 1.000 [1.000, 1.000]" in lines


def test_depth_questions_are_written_as_markdown(script: ModuleType) -> None:
    questions = [
        DepthQuestion(number, f"{number}.png", "nearest", ("cup", "bus"), "cup", number == 0, 0.1) for number in (0, 1)
    ]

    def items(*right: float) -> list[MeasuredItem]:
        return [MeasuredItem(str(place), {"accuracy": (one, 1.0)}, "cup") for place, one in enumerate(right)]

    answers = {script.BASE: items(1, 0), script.TRUE_DEPTH: items(1, 1), script.SHUFFLED_DEPTH: items(1, 1)}
    score = SimpleNamespace(metrics={"accuracy": 0.0, "chance": 0.5, "named": 0.125})
    found = {("caption", "nearest", arm): own for arm, own in answers.items()}
    lines = list(script.depth_lines(script.Depth(questions, found, SimpleNamespace(scores=[score]))))
    assert "**The chance level is 50 %.**" in lines[0].replace("\n", " ")
    assert "12.5 % of the answers name exactly one of the two objects, and 0.0 % are" in lines[2].replace("\n", " ")
    row = next(line for line in lines if line.startswith("| caption"))
    assert row.startswith("| caption | nearest | 2 | 50.0 [0.0, 100.0] | 100.0 [100.0, 100.0] |")
    assert "+50.0 [+0.0, +100.0] | +0.0 [+0.0, +0.0]" in row
    said = " ".join(" ".join(lines).split("* ")[-1].split())
    assert said.startswith(
        "Form caption: the base is above chance in 0 of 1 orders. DSCR differs from the base in 0 of 1"
    )


def test_findings_about_depth_follow_the_intervals(script: ModuleType) -> None:
    def items(right: float, shift: int = 0) -> list[MeasuredItem]:
        # 40 scenes, of which this share is answered right.
        return [
            MeasuredItem(str(place), {"accuracy": (float((place + shift) % 40 < 40 * right), 1.0)}, "cup", str(place))
            for place in range(40)
        ]

    found = {
        ("caption", "nearest", script.BASE): items(0.9),
        ("caption", "nearest", script.TRUE_DEPTH): items(0.4),
        ("caption", "nearest", script.SHUFFLED_DEPTH): items(0.4, shift=3),
        ("caption", "largest", script.BASE): items(0.5),
        ("caption", "largest", script.TRUE_DEPTH): items(0.5),
        ("caption", "largest", script.SHUFFLED_DEPTH): items(1.0),
    }
    assert list(script.depth_findings(found)) == [
        "Form caption: the base is above chance in 1 of 2 orders (nearest). DSCR differs from the base in 1 of 2 "
        "orders (nearest), and from DSCR with shuffled depth in 1 of 2 orders (largest)."
    ]


def test_both_documents_have_the_sections(script: ModuleType) -> None:
    """The script of the laboratory keeps the sections of this one."""
    sections = import_module("laboratory_document.sections")
    document = (ROOT / "docs" / "laboratory.md").read_text("utf-8")
    template = (SCRIPTS / "documents" / "laboratory_document" / "laboratory.md").read_text("utf-8")
    for name in (script.ATTENTION, script.DEPTH):
        lines = sections.section(document, script.SCRIPT, name)
        assert any(line.startswith("| ") for line in lines)
        filled = sections.with_section(template, script.SCRIPT, name, lines)
        assert sections.section(filled, script.SCRIPT, name) == lines
        assert sections.with_section(document, script.SCRIPT, name, lines) == document
    with pytest.raises(QkeditError, match="has no <!-- x of y: begin -->"):
        sections.section(document, "y", "x")
