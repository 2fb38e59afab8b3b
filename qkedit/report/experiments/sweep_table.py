"""Tables of a sweep for a terminal of 80 columns: ranked cells next to their random controls, and the confirmation."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.errors import counted
from qkedit.laboratory.measures import MEASURES, Measure
from qkedit.laboratory.sweep import CellResult, SweepReport
from qkedit.laboratory.tuning.confirmation import Confirmation
from qkedit.laboratory.tuning.space import less_usual
from qkedit.report.experiments.arms_table import STYLES
from qkedit.report.experiments.tune_table import confirmed_or_not
from qkedit.report.figures import Spelling, improves, tolerance
from qkedit.report.fitting_table import FittingTable
from qkedit.report.terminal_text import on_one_line

MOST_ROWS = 15
CHANNELS = {"full": "full", "symmetric": "symm", "antisymmetric": "anti"}


@dataclass(frozen=True)
class SweepTables:
    """The result of a sweep: only the best cells unless `every_cell`."""

    report: SweepReport
    every_cell: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the tables out."""
        plain, report = options.ascii_only, self.report
        measure = MEASURES[report.settings.objective]
        spelling = Spelling(measure, plain)
        yield Text(_title(report, spelling), style="bold")
        ranked = report.ranked if self.every_cell else report.ranked[:MOST_ROWS]
        yield _ranking(ranked, measure, spelling, first_is_best=report.winner is not None)
        if len(ranked) < len(report.ranked):
            yield Text(f"… and {len(report.ranked) - len(ranked)} more" if not plain else "...", style="dim")
        yield Text()
        if report.confirmation is None:
            yield Text("Every cell violates a guard: none is chosen, so there is nothing to confirm.", style="bold")
        else:
            yield from self._confirmation(report.confirmation, plain)
        yield Text()
        yield Text(_legend(report, plain), style="dim")

    def _confirmation(self, confirmation: Confirmation, plain: bool) -> RenderResult:
        _, second = self.report.settings.scenes.halves()
        best = self.report.ranked[0].cell
        yield Text(f"The best cell on {counted(second.count, 'other scene')}: {best.name}", style="bold")
        names = ("base", "best cell", "controls")
        table = FittingTable("measure", *names, "best - controls" if plain else "best − controls", gap=1)
        for measure in MEASURES.values():
            spelling = Spelling(measure, plain)
            figures = [row.figures[measure.name] for row in confirmation.rows]
            assert len(figures) == len(names)
            difference = confirmation.to_controls[measure.name]
            table.add_row(
                Text(measure.name),
                Text(spelling.value(figures[0].interval.value)),
                Text(spelling.interval(figures[1].interval), style=STYLES[improves(measure, figures[1].difference)]),
                Text(spelling.interval(figures[2].interval), style=STYLES[improves(measure, figures[2].difference)]),
                Text(spelling.difference(difference), style=STYLES[improves(measure, difference)]),
            )
        yield table
        yield Text()
        yield Text(confirmed_or_not(confirmation, self.report.settings.objective, "the best cell"), style="bold")


def _ranking(
    ranked: tuple[CellResult, ...], measure: Measure, spelling: Spelling, *, first_is_best: bool
) -> FittingTable:
    minus = "-" if spelling.plain else "−"
    table = FittingTable(
        *("", "layers", "k", "channel", "left", spelling.title, f"{minus} base", f"controls {minus} base", "broken"),
        right=("", "k", "left"),
        breaking=("broken",),
        gap=1,
    )
    for place, result in enumerate(ranked, start=1):
        cell = result.cell
        table.add_row(
            Text(str(place)),
            Text(cell.layers),
            Text(str(cell.k)),
            Text(CHANNELS[cell.channel]),
            Text(f"{cell.retain:g}"),
            Text(spelling.value(result.objective.interval.value)),
            Text(
                spelling.difference(result.objective.difference),
                style=STYLES[improves(measure, result.objective.difference)],
            ),
            Text(
                spelling.difference(result.controls.difference),
                style=STYLES[improves(measure, result.controls.difference)],
            ),
            Text(", ".join(result.broken), style="red"),
            style="bold" if place == 1 and first_is_best else None,
        )
    return table


def _title(report: SweepReport, spelling: Spelling) -> str:
    settings = report.settings
    first, _ = settings.scenes.halves()
    base = spelling.value(report.base[settings.objective])
    others = less_usual(settings.product, settings.protect, settings.spare)
    return (
        f"{on_one_line(settings.model)}: {counted(len(report.ranked), 'cell')}{others} by {settings.objective} "
        f"(base {base}{' %' if spelling.measure.is_share else ''}), chosen on {counted(first.count, 'scene')}"
    )


def _legend(report: SweepReport, plain: bool) -> str:
    settings = report.settings
    minus = "-" if plain else "−"
    guards = " and ".join(
        f"{guard.path} may be {tolerance(guard.tolerance, MEASURES[guard.path])} worse" for guard in settings.guards
    )
    return (
        f"In brackets 95% intervals over scenes. {minus} base: difference from the base on the same scenes, coloured "
        f"where its interval excludes 0. Controls: {settings.seeds} {settings.control}-matched random edits of each "
        f"cell, pooled. left: share of each mode that is kept. Guard: {guards or 'none'} than the base's"
        + (
            ". The best of many cells looks better than it is on the scenes it was chosen on: trust the other scenes."
            if report.confirmation is not None
            else "."
        )
    )
