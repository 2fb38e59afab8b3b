"""Show the differences of two models, for a terminal of 80 columns and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.report.csv_text import csv_text
from qkedit.report.fitting_table import FittingTable
from qkedit.report.terminal_text import on_one_line

if TYPE_CHECKING:
    from qkedit.steering.differences.difference import ModelDifference
    from qkedit.steering.differences.heads import HeadDifference, LayerDifference


@dataclass(frozen=True)
class DifferenceTables:
    """The tensors that differ, and the query-key products that do, one row per layer or one per head."""

    difference: ModelDifference
    every_head: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the tables out."""
        difference = self.difference
        if difference.tensors:
            yield self._tensors()
        yield Text(f"{len(difference.tensors)} of {difference.compared} tensors differ.")
        if difference.layers:
            yield Text()
            yield self._products(plain=options.ascii_only)
            yield Text(self._legend(), style="dim")
        elif difference.not_per_head is not None:
            yield Text(f"No figures per head: {on_one_line(difference.not_per_head)}")

    def _tensors(self) -> FittingTable:
        figures = ("change", "largest", "elements")
        table = FittingTable("tensor", *figures, right=figures, breaking=("tensor",))
        for tensor in self.difference.tensors:
            relative, largest = tensor.relative_change, tensor.largest_change
            table.add_row(
                tensor.name,
                tensor.what if relative is None else _change(relative, 2),
                "" if largest is None else f"{largest:.2g}",
                "" if tensor.elements_changed is None else f"{tensor.elements_changed:.1%}",
            )
        return table

    def _products(self, *, plain: bool) -> FittingTable:
        based = self.difference.base is not None
        figures = ["layer", "head" if self.every_head else "heads", "change", "rank"]
        figures[3:3] = [] if self.every_head else ["per head"]
        figures += ["of A", "of B", "angles"] if based else []
        table = FittingTable(*figures, right=figures)
        for layer in self.difference.layers:
            for heads in [[head] for head in layer.heads] if self.every_head else [list(layer.heads)]:
                cells = [str(layer.layer) + ("*" if layer.keys_differ else "")]
                cells += [str(heads[0].head) if self.every_head else str(len(heads))]
                cells += [_known(heads[0].relative if self.every_head else layer.relative)]
                cells += [] if self.every_head else [_range([head.relative for head in heads], _known)]
                names = ("rank", "rank_a", "rank_b") if based else ("rank",)
                cells += [_range([getattr(head, name) for head in heads], str) for name in names]
                cells += [_angles(heads, plain)] if based else []
                table.add_row(*cells)
        return table

    def _legend(self) -> str:
        difference = self.difference
        base = None if difference.base is None else on_one_line(difference.base)
        sentences = [
            "Query-key products: change is the Frobenius norm of the difference over that of "
            + (f"the base, {base}" if base else "A"),
            "rank: its singular values above rounding",
        ]
        if base:
            sentences.append(
                "of A, of B: dimensions of the subspaces of queries that each changes; angles: principal angles "
                "between the two"
            )
        if any(layer.keys_differ for layer in difference.layers):
            sentences.append("*: keys differ, too")
        return ". ".join(sentences) + "."


def difference_csv(difference: ModelDifference) -> str:
    """Return one line per head that differs, the principal angles last."""
    heads = [(layer, head) for layer in difference.layers for head in layer.heads]
    most = max((len(head.angles) for _, head in heads), default=0)
    names = ["head", "key_head", "norm", "relative", "rank", "rank_a", "rank_b"]
    header = ["a", "b", "base", "layer", "keys_differ", *names, *(f"angle_{place}" for place in range(1, most + 1))]
    return csv_text([header, *_lines(difference, heads, names, most)])


def _lines(
    difference: ModelDifference,
    heads: Iterable[tuple[LayerDifference, HeadDifference]],
    names: Sequence[str],
    most: int,
) -> Iterator[list[object]]:
    for layer, head in heads:
        angles = [*head.angles, *[None] * (most - len(head.angles))]
        models = [difference.first, difference.second, difference.base]
        figures = [getattr(head, name) for name in names]
        yield [*models, layer.layer, int(layer.keys_differ), *figures, *angles]


def _change(relative: float, decimals: int) -> str:
    return f"{relative:.{decimals}%}" if relative < 1000 else f"{relative:.2g} times"


def _known(relative: float | None) -> str:
    return "-" if relative is None else _change(relative, 1)


def _range(values: Sequence[float | None], spell: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    least, most = spell(min(known)), spell(max(known))
    return least if least == most else f"{least} to {most}"


def _angles(heads: Sequence[HeadDifference], plain: bool) -> str:
    angles = [angle for head in heads for angle in head.angles]
    if not angles:
        return "-"
    unit = " deg" if plain else "°"
    least, most = f"{min(angles):.1f}", f"{max(angles):.1f}"
    return f"{least}{unit}" if least == most else f"{least} to {most}{unit}"
