"""What commands print alike."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from qkedit.cli.printed import names_of, plain_table, written_lines


def test_a_narrow_terminal_loses_no_letter() -> None:
    table = plain_table("name", "size", right=("size",))
    table.add_row("language_model.layers.0", "12")
    stream = io.StringIO()
    Console(file=stream, width=14).print(table)
    lines = stream.getvalue().splitlines()
    assert "".join(line.split()[0] for line in lines[1:]) == "language_model.layers.0"
    assert lines[1].endswith("  12")


def test_files_that_were_written_are_named() -> None:
    names = names_of(Path("a.csv"), None, Path("b.png"))
    assert names == ["a.csv", "b.png"]
    assert written_lines(names) == ["", "Written: a.csv, b.png"]
    assert written_lines(names_of(None)) == []
