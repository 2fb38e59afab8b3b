"""Test that no table loses a cell on a narrow terminal."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

import qkedit
from qkedit.report.fitting_table import FittingTable

NAMES = ("metric", "A", "B", "interval", "p", "")
ROWS = (
    ("accuracy", "0.812", "0.833", "-0.001 to +0.043", "0.061", "better"),
    ("language_model.model.layers.0.self_attn.q_proj.weight", "0.5", "0.25", "-", "<0.001", "worse"),
)


def printed(table: FittingTable, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False, emoji=False).print(table)
    return stream.getvalue().splitlines()


def table_of(rows: tuple[tuple[str, ...], ...], breaking: tuple[str, ...] = ()) -> FittingTable:
    table = FittingTable(*NAMES, right=("A", "B"), breaking=breaking)
    for row in rows:
        table.add_row(*row)
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("breaking", [(), ("metric",)])
def test_every_word_is_printed_at_every_width(width: int, breaking: tuple[str, ...]) -> None:
    lines = printed(table_of(ROWS, breaking), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in ROWS:
        assert {word for word in " ".join(row).split() if len(word) <= 24} <= set(text.replace(",", " ").split())


def test_a_row_that_does_not_fit_becomes_a_sentence() -> None:
    assert printed(table_of(ROWS[:1]), 40) == [
        "metric accuracy, A 0.812, B 0.833,",
        "  interval -0.001 to +0.043,",
        "  p 0.061 better",
    ]


def test_rows_that_fit_are_a_table() -> None:
    assert [line.split() for line in printed(table_of(ROWS[:1]), 80)] == [
        list(filter(None, NAMES)),
        " ".join(ROWS[0]).split(),
    ]


@given(
    st.lists(st.tuples(*[st.text("abc -", max_size=20)] * len(NAMES)), min_size=1, max_size=3),
    st.integers(min_value=10, max_value=100),
)
def test_tables_keep_every_letter(rows: list[tuple[str, ...]], width: int) -> None:
    lines = printed(table_of(tuple(rows)), width)
    assert max(map(len, lines)) <= width
    for letter in "abc":
        expected = sum(cell.count(letter) for row in rows for cell in row)
        headers = sum(title.count(letter) for title in NAMES)
        found = sum(line.count(letter) for line in lines)
        assert found >= expected
        assert found <= expected + headers * len(rows)


def test_a_cell_cannot_forge_a_row() -> None:
    table = FittingTable("name", "verdict")
    table.add_row("a\nfine  better\x1b[2K", Text("worse"))
    assert printed(table, 80)[1:] == [r"a\nfine  better\x1b[2K  worse  "]


def test_only_this_module_imports_tables_of_rich() -> None:
    """So these tests cover all tables."""
    package = Path(qkedit.__file__).parent
    users = {
        file.name
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "rich.table"
    }
    assert users == {"fitting_table.py"}
