"""Tables that show everything on a narrow terminal: a row becomes a sentence if its columns do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from qkedit.report.terminal_text import on_one_line

# A column whose cells may break is at least as wide as their longest word, or as this many letters.
_NARROWEST_BREAKING = 24


class FittingTable(Table):
    """A table without rules; if it does not fit, each row is written as `title cell, title cell, …`.

    A cell given as a str is one line; a Text may have several.

    Args:
        titles: the titles of the columns.
        right: the titles of the columns that are aligned to the right, such as numbers.
        breaking: the titles of the columns whose cells may break over several lines.
        gap: the number of blanks between columns.
    """

    def __init__(
        self, *titles: str, right: Collection[str] = (), breaking: Collection[str] = (), gap: int = 2
    ) -> None:
        super().__init__(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
        for title in titles:
            self.add_column(
                on_one_line(title),
                justify="right" if title in right else "left",
                no_wrap=title not in breaking,
                overflow="fold",
            )

    def add_row(
        self,
        *cells: RenderableType | None,
        style: StyleType | None = None,
        end_section: bool = False,
    ) -> None:
        """Add a row; control characters in a str are escaped."""
        written = (Text(on_one_line(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*written, style=style, end_section=end_section)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the rows for the available width."""
        needed, preferred = self._widths(console, options)
        room = options.max_width - sum(needed) - self.padding[1] * (len(needed) - 1)
        if room >= 0:
            for column, least, most in zip(self.columns, needed, preferred, strict=True):
                if column.ratio is None:
                    column.width = min(most, least + room)
                    room -= column.width - least
            yield from super().__rich_console__(console, options)
            return
        columns = [list(column.cells) for column in self.columns]
        for place, row in enumerate(self.rows):
            cells = [column[place] for column in columns]
            for line in self._stacked(
                [cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells], options
            ):
                line.stylize(row.style or "")
                yield line

    def _widths(self, console: Console, options: ConsoleOptions) -> tuple[list[int], list[int]]:
        """Return for each column the smallest width that cuts no word, and the one that breaks no cell."""
        unlimited = options.update(width=10_000)
        needed, preferred = [], []
        for column in self.columns:
            cells = [Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)]
            preferred.append(max(column.min_width or 0, *(cell.maximum for cell in cells)))
            longest_word = min(_NARROWEST_BREAKING, max(cell.minimum for cell in cells))
            needed.append(preferred[-1] if column.no_wrap else longest_word)
        return needed, preferred

    def _stacked(self, cells: list[Text], options: ConsoleOptions) -> Iterator[Text]:
        line = Text(overflow="fold")
        for entry in self._entries(cells):
            if line.plain.strip() and line.cell_len + 1 + entry.cell_len > options.max_width:
                yield line
                line = Text("  ", overflow="fold")
            elif line.plain.strip():
                line.append(" ")
            line.append_text(entry)
        yield line

    def _entries(self, cells: list[Text]) -> list[Text]:
        """Return `title cell,` for each non-empty cell; a cell without a title joins the one before it."""
        entries: list[Text] = []
        for column, cell in zip(self.columns, cells, strict=True):
            title = str(column.header)
            if not cell.plain.strip():
                continue
            if title or not entries:
                if entries:
                    entries[-1].append(",")
                entries.append(Text.assemble(f"{title} " if title else "", cell))
            else:
                entries[-1].append(" ").append_text(cell)
        return entries
