"""Tables of a search for a terminal of 80 columns: the best trials, the confirmation, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from qkedit.errors import counted
from qkedit.laboratory.measures import Row
from qkedit.laboratory.tuning.confirmation import Confirmation, Verdict
from qkedit.laboratory.tuning.result import Ended, TrialResult, TuneReport
from qkedit.laboratory.tuning.space import Candidate
from qkedit.report.experiments.arms_table import STYLES
from qkedit.report.figures import Spelling, improves, tolerance
from qkedit.report.fitting_table import FittingTable
from qkedit.report.terminal_text import on_one_line
from qkedit.spectral.sink import protection_text

MOST_ROWS = 12


@dataclass(frozen=True)
class TuneTables:
    """The result of a search: only the best trials unless `every_trial`."""

    report: TuneReport
    every_trial: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the tables out."""
        report, plain = self.report, options.ascii_only
        yield Text(_title(report), style="bold")
        rows = self._rows()
        yield _trials(report, rows, plain)
        if len(rows) < len(report.trials):
            yield Text(f"and {len(report.trials) - len(rows)} more trials (--detail shows them)", style="dim")
        yield Text()
        if report.confirmation is not None:
            yield from _confirmation(report, report.confirmation, plain)
            yield Text()
        yield Text(conclusion(report), style="bold")
        if report.command is not None:
            yield Text(f"\n    {on_one_line(report.command)}")
        yield Text()
        yield Text(_legend(report, plain), style="dim")

    def _rows(self) -> Sequence[TrialResult]:
        ranked = self.report.ranked
        if self.every_trial:
            return (*ranked, *(trial for trial in self.report.trials if trial.ended is not Ended.FINISHED))
        pareto = {trial.number for trial in self.report.pareto}
        # All trade-offs, and the best others as far as there is space.
        others = [trial.number for trial in ranked if trial.number not in pareto]
        shown = pareto | set(others[: max(0, MOST_ROWS - len(pareto))])
        return [trial for trial in ranked if trial.number in shown]


def conclusion(report: TuneReport) -> str:
    """Return what a search found, and what follows from it, in sentences."""
    objective, found = report.goal.objective.name, report.confirmation
    if found is None or report.best is None:
        return (
            f"No edit is better than none: none of {counted(len(report.trials), 'edit')} that were tried improves "
            f"{objective} and keeps the guards. Leave the model as it is, or search another space."
        )
    sentence = confirmed_or_not(found, objective, f"trial {report.best.number} ({report.best.edit.name})")
    return sentence if report.command is None else f"{sentence} To write the edited model:"


def confirmed_or_not(found: Confirmation, objective: str, name: str) -> str:
    """Return whether the half of the questions that was not used to choose an edit confirms it.

    Args:
        found: the confirmation.
        objective: the name of the objective.
        name: the name of the edit.
    """
    if found.verdict is Verdict.NOT_CONFIRMED:
        guards = f"breaks the guard of {', '.join(found.broken)}"
        if found.is_better:
            return (
                f"Not confirmed: on the other half, {name} improves {objective}, but {guards}. A stricter guard "
                "(--no-worse) would choose an edit that has a margin."
            )
        return (
            f"Not confirmed: on the other half, {name} does not certainly improve {objective} (see its interval)"
            f"{f' and {guards}' if found.broken else ''}. So no edit was found that is better than none; more images "
            "would narrow the interval."
        )
    if found.beats_controls is None:
        against = " It was compared with no random control."
    elif found.beats_controls:
        against = " Random edits of the same size do less."
    else:
        against = " Random edits of the same size are not certainly worse, so that the gain may not be these modes'."
    return f"Confirmed: {name} improves {objective} and keeps the guards.{against}"


def _trials(report: TuneReport, rows: Sequence[TrialResult], plain: bool) -> FittingTable:
    goal, pareto = report.goal, {trial.number for trial in report.pareto}
    spellings = [Spelling(measure, plain) for measure in goal.shown]
    minus = "-" if plain else "−"
    drifts = any(trial.effect.drift is not None for trial in report.trials)
    titles = _titles(report)
    table = FittingTable(
        *("", "trial", "layers", "heads", "modes", "channel", "left", titles[0], f"{minus} base", *titles[1:]),
        *(["drift"] if drifts else []),
        right=("trial", "left", "drift", *titles[1:]),
        breaking=("channel",),
        gap=1,
    )
    base = [Text(spelling.value(report.base[one.name])) for spelling, one in zip(spellings, goal.shown, strict=True)]
    table.add_row("", "", "none", "", "", "", "", base[0], "", *base[1:], *(["0"] if drifts else []))
    for trial in rows:
        edit = trial.edit
        values = [
            Text(spelling.value(trial.values.get(measure.name)), style="red" if measure.name in trial.broken else "")
            for spelling, measure in zip(spellings, goal.shown, strict=True)
        ]
        difference = trial.objective.difference if trial.objective is not None else None
        drift = trial.effect.drift
        table.add_row(
            _broken(plain) if trial.broken else _trade_off(plain) if trial.number in pareto else "",
            str(trial.number),
            edit.layers,
            edit.heads,
            edit.modes.removeprefix("k "),
            _part(edit),
            f"{edit.retain:g}",
            values[0],
            Text(spellings[0].difference(difference), style=STYLES[improves(goal.objective, difference)])
            if trial.ended is Ended.FINISHED
            else trial.ended.value,
            *values[1:],
            *([f"{drift:.3f}" if drift is not None else ""] if drifts else []),
            style="bold" if report.best is trial else None,
        )
    return table


def _part(edit: Candidate) -> str:
    """Return the channel, and behind it the less usual options: `full sink:8`, `symm induction`, `full folded`."""
    protected = [protection_text(edit.protect)] if edit.protect else []
    others = [name for name in (edit.spare, edit.product) if name not in ("none", "raw")]
    return " ".join([edit.channel[:4], *protected, *others])


def _confirmation(report: TuneReport, found: Confirmation, plain: bool) -> RenderResult:
    minus = "-" if plain else "−"
    yield Text(f"On the other half, {counted(report.halves[1], 'image')} that were not used to choose", style="bold")
    assert report.best is not None
    rows = {row.name: row for row in found.rows}
    base, best, name = found.rows[0], rows[report.best.edit.name], f"trial {report.best.number}"
    control = next((row for row in found.rows if row.name.endswith(" control")), None)
    default = next((row for row in found.rows[1:] if row is not best and row is not control), None)
    shown: list[tuple[str, Row]] = [(name, best)]
    shown += [("steer's default", default)] if default is not None else []
    shown += [("random controls", control)] if control is not None else []
    table = FittingTable("measure", "arm", "", f"{minus} base", f"{name} {minus} it", gap=1)
    against = {"steer's default": found.to_default, "random controls": found.to_controls}
    for measure, title in zip(report.goal.shown, _titles(report), strict=True):
        spelling = Spelling(measure, plain)
        table.add_row(Text(title), "base", spelling.value(base.figures[measure.name].interval.value), "", "")
        for arm, row in shown:
            figure = row.figures[measure.name]
            to_it = against.get(arm, {}).get(measure.name)
            table.add_row(
                "",
                arm,
                Text(spelling.interval(figure.interval)),
                Text(spelling.difference(figure.difference), style=STYLES[improves(measure, figure.difference)]),
                Text(spelling.difference(to_it), style=STYLES[improves(measure, to_it)]),
                style="bold" if row is best else None,
            )
    yield table


def _titles(report: TuneReport) -> list[str]:
    # Short names alone fit into 80 columns; where two measures share one, their full names are shown.
    shown = report.goal.shown
    short = [measure.name.rpartition(".")[2] for measure in shown]
    names = [one if short.count(one) == 1 else measure.name for one, measure in zip(short, shown, strict=True)]
    return [f"{name} %" if measure.is_share else name for name, measure in zip(names, shown, strict=True)]


def _trade_off(plain: bool) -> str:
    return "*" if plain else "●"


def _broken(plain: bool) -> str:
    return "x" if plain else "×"


def _title(report: TuneReport) -> str:
    resumed = f", {counted(report.resumed, 'result')} of an earlier run" if report.resumed else ""
    return (
        f"{on_one_line(report.model)}: {counted(len(report.trials), 'trial')} of {report.size} edits by "
        f"{report.goal.objective.name}, {report.questions}, half of them to choose by{resumed}"
    )


def _legend(report: TuneReport, plain: bool) -> str:
    given_up, too_far, no_head = (
        sum(trial.ended is kind for trial in report.trials) for kind in (Ended.GIVEN_UP, Ended.TOO_FAR, Ended.NO_HEAD)
    )
    losses = [(one.path, tolerance(one.tolerance, report.goal.measures[one.path])) for one in report.goal.guards]
    guards = ", ".join(f"{name} may be {loss} worse than the base's" for name, loss in losses)
    limit = "" if report.most_drift is None else f" (drift above {report.most_drift:g} nats)"
    sentences = [
        f"{_trade_off(plain)}: no other edit, nor the base, is as good in all columns and better in one.",
        f"{_broken(plain)}: breaks a guard." if any(trial.broken for trial in report.trials) else "",
        "In brackets 95% intervals over images. left: share of each mode that is kept. drift: nats per token from the "
        "base, on a few images.",
        f"{counted(given_up, 'trial')} given up after a part of the questions." if given_up else "",
        f"{counted(too_far, 'trial')} not asked{limit}." if too_far else "",
        f"{counted(no_head, 'trial')} not asked (every head is spared)." if no_head else "",
        f"Guard: {guards or 'none'}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)
