"""Test that untrusted text cannot control a terminal."""

from __future__ import annotations

import contextlib
import io
import unicodedata
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group
from rich.text import Text

from qkedit.cli.commands.edit.inspect import _title
from qkedit.cli.output import Output, aligned
from qkedit.errors import QkeditError
from qkedit.report.csv_text import _cell
from qkedit.report.fitting_table import FittingTable
from qkedit.report.spectra.table import ComparisonTable
from qkedit.report.terminal_text import on_one_line, visible

HOSTILE = "\x1b]0;title\x07\x1b[2J\rerror: forged\x9b31m\u202egnp.exe\u2066[bold]red[/bold]:smile:\udcff"


def printed(human: object) -> str:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        Output("score").result({}, human)  # type: ignore[arg-type]
    return stream.getvalue()


def harmless(text: str) -> bool:
    return not any(
        (unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for letter in text
    )


@given(st.text())
def test_only_control_characters_are_escaped(text: str) -> None:
    assert harmless(visible(text))
    assert len(on_one_line(text).splitlines()) <= 1
    if harmless(text) and not set("\u061c\u200e\u200f") & set(text):
        assert visible(text) == text


@pytest.mark.parametrize(
    "wrap", [str, Text, lambda text: Group(text, Text(text)), lambda text: aligned([("a", text)])]
)
def test_every_way_to_print_escapes_control_characters(wrap: object) -> None:
    text = printed(wrap(HOSTILE))  # type: ignore[operator]
    assert harmless(text)
    assert r"\x1b]0;title" in text
    assert r"\u202egnp.exe" in text
    assert "[bold]red[/bold]:smile:" in text


def test_tables_escape_control_characters() -> None:
    table = FittingTable("name")
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    assert harmless(printed(table))


def test_errors_and_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output("score")
    output.warn("first\nwarning: forged")
    with pytest.raises(typer.Exit):
        output.failure(QkeditError("broken\nerror: forged \x1b[31m", where="a\u2028b"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        r"warning: first\nwarning: forged",
        r"error: a\u2028b: broken\nerror: forged \x1b[31m.",
    ]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2", "-2"),
        ("0,3,-2", "0,3,-2"),
        ("-1,2|cmd", "'-1,2|cmd"),
        ("a\rb", r"a\rb"),
        ("./model", "./model"),
        (1.5, 1.5),
        (None, None),
    ],
)
def test_a_name_in_a_csv_is_not_a_formula(value: object, cell: object) -> None:
    assert _cell(value) == cell


def test_the_name_of_a_model_forges_no_line_of_a_table() -> None:
    name = "a\n    7 9.99 forged"
    inspection: Any = SimpleNamespace(model=name, layers=[SimpleNamespace(layer=2)])
    assert len(_title(inspection).splitlines()) == 1
    comparison: Any = SimpleNamespace(model=name, other=name, layers=[], channel="full", wanted="k 4")
    console = Console(width=4096, file=StringIO())
    *_, note = ComparisonTable(comparison, every_head=False).__rich_console__(console, console.options)
    assert len(str(note).splitlines()) == 1
