"""Render results as Markdown: arms with their intervals, a sweep's grid, ranking and confirmation, and the claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from laboratory_document.claims import Contrast, OutcomeOf, by_cell
from qkedit.demo.questions import SPLITS
from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.measures import CAPTIONS, MEASURES, Measure, Row
from qkedit.laboratory.sweep import SweepReport
from qkedit.report.figures import Spelling, improves

RANKED = 10


def base_lines(base: Row) -> Iterator[str]:
    """Yield the base's figures: one line for captions, and one per split."""
    yield "| captions | CHAIR_s % | CHAIR_i % | recall % | words |"
    yield "|:--|--:|--:|--:|--:|"
    yield _line("", (Spelling(m).interval(base.figures[m.name].interval) for m in _measures_of(CAPTIONS)))
    yield ""
    yield "| questions | accuracy % | F1 % | HR % |"
    yield "|:--|--:|--:|--:|"
    for part in SPLITS:
        yield _line(part, (Spelling(m).interval(base.figures[m.name].interval) for m in _measures_of(part)))


def arms_lines(rows: Sequence[Row], part: str, more: Sequence[Measure] = ()) -> Iterator[str]:
    """Yield one part of a comparison: each arm, its difference from the base, and the range over a control's seeds.

    Args:
        rows: the rows of the comparison.
        part: the part of the evaluation set.
        more: further measures that the rows have.
    """
    measures = [*_measures_of(part), *more]
    yield f"| arm | {' | '.join(Spelling(measure).title for measure in measures)} |"
    yield "|:--|" + "--:|" * len(measures)
    for row in rows:
        figures = [(measure, row.figures[measure.name]) for measure in measures]
        yield _line(row.name, (Spelling(measure).interval(figure.interval) for measure, figure in figures))
        if len(row.arms) > 1:
            yield _line(f"  {len(row.arms)} seeds", (Spelling(measure).seeds(figure) for measure, figure in figures))
        if figures[0][1].difference is not None:
            yield _line("  − base", (marked(measure, figure.difference) for measure, figure in figures))


def grid_lines(report: SweepReport, outcome_of: OutcomeOf, channel: str, measure: Measure) -> Iterator[str]:
    """Yield layers by modes: each edit's difference from the base, and in italics that of its random controls."""
    settings = report.settings
    cells = {
        (cell.layers, cell.k): (edit, controls)
        for cell, edit, controls in by_cell(settings, outcome_of, channel, measure)
    }
    yield f"| {channel}: {_name(measure)} | {' | '.join(f'k {k}' for k in settings.ks)} |"
    yield "|:--|" + "--:|" * len(settings.ks)
    for layers in settings.layers:
        yield _line(f"layers {layers}", (marked(measure, cells[layers, k][0]) for k in settings.ks))
        yield _line("  random", (f"*{Spelling(measure).difference(cells[layers, k][1])}*" for k in settings.ks))


def ranking_lines(report: SweepReport) -> Iterator[str]:
    """Yield the best cells with their controls next to them."""
    measure = MEASURES[report.settings.objective]
    spelling = Spelling(measure)
    yield f"| | layers | k | channel | {spelling.title} | − base | controls − base | guard |"
    yield "|--:|:--|--:|:--|--:|--:|--:|:--|"
    for place, result in enumerate(report.ranked[:RANKED], start=1):
        cell = result.cell
        yield _line(
            str(place),
            (
                cell.layers,
                str(cell.k),
                cell.channel,
                spelling.value(result.objective.interval.value),
                marked(measure, result.objective.difference),
                spelling.difference(result.controls.difference),
                f"breaks {', '.join(result.broken)}" if result.broken else "kept",
            ),
        )


def confirmation_lines(report: SweepReport) -> Iterator[str]:
    """Yield the winner on the scenes that were not used to choose it, with base and controls."""
    if report.confirmation is None:
        yield "Every cell broke a guard, so there was nothing to confirm."
        return
    base, winner, controls = report.confirmation.rows
    yield "| measure | base | winner | its random controls | winner − base | winner − controls |"
    yield "|:--|--:|--:|--:|--:|--:|"
    for measure in MEASURES.values():
        spelling = Spelling(measure)
        rows = [row.figures[measure.name] for row in (base, winner, controls)]
        yield _line(
            _name(measure),
            (
                *(spelling.interval(figure.interval) for figure in rows),
                marked(measure, rows[1].difference),
                marked(measure, report.confirmation.to_controls[measure.name]),
            ),
        )


def claim_lines(contrasts: Iterable[Contrast]) -> Iterator[str]:
    """Yield every contrast of every claim: hallucination with its verdict, and the cost."""
    found: dict[tuple[str, str], list[Contrast]] = {}
    for contrast in contrasts:
        found.setdefault((contrast.claim, contrast.name), []).append(contrast)
    measures = [contrast.measure for contrast in next(iter(found.values()))]
    yield f"| claim | contrast | {' | '.join(_name(measure) for measure in measures)} |"
    yield "|:--|:--|" + "--:|" * len(measures)
    before = ""
    for (claim, name), columns in found.items():
        cells = [
            marked(one.measure, one.difference) + (f" **{one.verdict}**" if one.verdict else "") for one in columns
        ]
        yield _line(claim if claim != before else "", (name, *cells))
        before = claim


def marked(measure: Measure, difference: Difference | None) -> str:
    """Return a difference, with an arrow if its interval excludes zero: up is better, down is worse."""
    arrow = {True: " ▲", False: " ▼", None: ""}[improves(measure, difference)]
    return Spelling(measure).difference(difference) + arrow


def _measures_of(part: str) -> list[Measure]:
    return [measure for measure in MEASURES.values() if measure.part == part]


def _name(measure: Measure) -> str:
    return f"{measure.title}, {measure.part}" if measure.part in SPLITS else measure.title


def _line(name: str, cells: Iterable[str]) -> str:
    # Markdown removes leading spaces, but not no-break spaces.
    indented = name.replace("  ", "\u00a0\u00a0") if name.startswith("  ") else name
    return f"| {' | '.join([indented, *cells])} |"
