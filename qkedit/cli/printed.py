"""What commands print alike: plain tables, and which files were written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(*titles: str, right: Collection[str] = ()) -> Table:
    """Return a table without lines; where a terminal is narrow cells are folded, so that no letter is lost.

    Args:
        titles: of its columns.
        right: those of them whose columns end at the right, as numbers do.
    """
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title in right else "left")
    return table


def names_of(*files: Path | None) -> list[str]:
    """Return the names of files for a JSON document; None is one that was not asked for."""
    return [str(file) for file in files if file is not None]


def written_lines(names: Sequence[str]) -> list[str]:
    """Return what tells, set off by an empty line, which files were written: nothing when none were."""
    return ["", f"Written: {', '.join(names)}"] if names else []
