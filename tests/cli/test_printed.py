"""What commands print alike."""

from __future__ import annotations

from pathlib import Path

from qkedit.cli.printed import names_of, written_lines


def test_files_that_were_written_are_named() -> None:
    names = names_of(Path("a.csv"), None, Path("b.png"))
    assert names == ["a.csv", "b.png"]
    assert written_lines(names) == ["", "Written: a.csv, b.png"]
    assert written_lines(names_of(None)) == []
