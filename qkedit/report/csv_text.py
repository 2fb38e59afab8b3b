"""Rows as CSV, in which no name is taken for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from qkedit.report.terminal_text import on_one_line

_OFFSET = re.compile(r"-?\d+(,-?\d+)*")


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in line] for line in lines])
    return text.getvalue()


def _cell(value: object) -> object:
    """Return the content of a cell; a quote precedes a name that a spreadsheet would evaluate as a formula."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r")) and not _OFFSET.fullmatch(value)
    return on_one_line(f"'{value}" if is_formula else value)
