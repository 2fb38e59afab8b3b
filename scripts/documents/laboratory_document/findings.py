"""Write what the tables show as sentences, by rules that were fixed before the results.

A figure is *lower* or *higher* than the base where the 95 % interval of the difference excludes zero, and otherwise
*undecided*. An edit *helps* where it lowers CHAIR_s and recall is not lower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from textwrap import fill

from laboratory_document.claims import Contrast
from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.measures import MEASURES, Row
from qkedit.laboratory.sweep import SweepReport
from qkedit.report.figures import Spelling, improves
from qkedit.report.spectra.summary import SpectrumRow

WIDTH = 120
SHOWN = ("chair_s", "recall", "hr_adversarial", "f1_adversarial")
ByName = Mapping[str, Row]


def finding_lines(
    rows: Sequence[Row],
    trained: Sequence[SpectrumRow],
    untrained: Sequence[SpectrumRow],
    report: SweepReport,
    contrasts: Sequence[Contrast],
) -> Iterator[str]:
    """Yield the findings as a list in Markdown.

    Args:
        rows: the rows of the demonstration, the base first.
        trained: the spectra of the model's layers.
        untrained: those of its untrained twin.
        report: the sweep.
        contrasts: the contrasts of the claims.
    """
    by_name = {row.name: row for row in rows}
    found = (
        _base(rows[0]),
        _spectra(trained, untrained),
        _edit(by_name),
        _sweep(report),
        *_claims(contrasts),
        _methods(by_name, "SCR", ("SCR", "SCR, uniform", "SCR, 4", "SCR, 4 uniform")),
        _methods(by_name, "DSCR with true depth", ("DSCR",)),
        _methods(by_name, "A plug-in on the edited model", ("edited + SCR", "edited + DSCR")),
    )
    for text in found:
        yield fill(f"* {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _base(base: Row) -> str:
    values = {name: f"{_value(base, name)} %" for name in ("recall", "chair_s")}
    hr = [base.figures[f"hr_{split}"].interval for split in ("adversarial", "popular", "random")]
    usual = all((hr[0].low or 0) > (other.high or 0) for other in hr[1:])
    title = "Hallucinations follow what is usual" if usual else "Hallucinations do not clearly follow what is usual"
    return (
        f"**{title}.** The captions name {values['recall']} of the objects, and {values['chair_s']} of the captions "
        f"name an absent one. The answer is yes to {_value(base, 'hr_adversarial')} % of the questions about absent "
        f"objects that usually occur with those in the scene, to {_value(base, 'hr_popular')} % about popular ones, "
        f"and to {_value(base, 'hr_random')} % about random ones."
    )


def _spectra(trained: Sequence[SpectrumRow], untrained: Sequence[SpectrumRow]) -> str:
    share, twin = (median(row.energy_top_k for row in rows) for rows in (trained, untrained))
    rank, rank_twin = (median(row.effective_rank for row in rows) for rows in (trained, untrained))
    modes = len(trained[0].singular_values)
    more = "Training concentrates energy" if share > twin else "Training does not concentrate energy"
    return (
        f"**{more}.** Four of {modes} modes hold {share:.0%} of a product's energy and the effective rank is "
        f"{rank:.1f}; in an untrained twin {twin:.0%} and {rank_twin:.1f} (medians over layers)."
    )


def _edit(by_name: ByName) -> str:
    edited = by_name["edited"]
    chair, recall = (_effect(edited, name) for name in ("chair_s", "recall"))
    if chair is not True:
        title = "Steering with the defaults does not lower CHAIR_s"
    elif recall is False:
        title = "Steering with the defaults lowers CHAIR_s, and recall"
    else:
        title = "Steering with the defaults helps"
    controls = [
        f"{words}: {_differences(by_name[f'control, {kind}'])}"
        for kind, words in (("index", "Index-matched random modes"), ("norm", "Norm-matched random directions"))
        if f"control, {kind}" in by_name
    ]
    return (
        f"**{title}.** It removes {edited.energy_removed or 0:.0%} of the energy: {_differences(edited)}. "
        f"{'. '.join(controls)}."
    )


def _sweep(report: SweepReport) -> str:
    cells = report.ranked
    kept = [one for one in cells if not one.broken]
    helping = [one for one in kept if improves(MEASURES[report.settings.objective], one.objective.difference)]
    text = (
        f"Of {len(cells)} cells, {len(kept)} keep recall within the guard, and {len(helping)} of these lower CHAIR_s "
        "on the half of the scenes that was used to choose."
    )
    if report.winner is None or report.confirmation is None:
        return f"**No cell of the sweep keeps recall.** {text}"
    winner = report.confirmation.rows[1]
    good = _effect(winner, "chair_s") is True and _effect(winner, "recall") is not False
    title = "The sweep's winner is confirmed" if good else "The sweep's winner is not confirmed"
    return (
        f"**{title}.** {text} The best that keeps recall, {report.winner.cell.name}, on the other half: "
        f"{_differences(winner)}."
    )


def _claims(contrasts: Sequence[Contrast]) -> Iterator[str]:
    for claim in dict.fromkeys(one.claim for one in contrasts):
        judged = [one for one in contrasts if one.claim == claim]
        verdicts = [one for one in judged if one.verdict]
        if not verdicts:
            continue
        name = verdicts[-1].name
        parts = [_difference(one.measure.name, one.difference) for one in judged if one.name == name]
        words = ", ".join(f"{one.measure.title} {one.verdict}" for one in verdicts if one.name == name)
        yield f"**Claim: {claim}.** {words} ({name}: {', '.join(parts)})."


def _methods(by_name: ByName, title: str, names: Sequence[str]) -> str:
    parts = [f"{name}: {_differences(by_name[name])}" for name in names if name in by_name]
    helps = [
        name
        for name in names
        if name in by_name
        and _effect(by_name[name], "chair_s") is True
        and _effect(by_name[name], "recall") is not False
    ]
    verdict = f"lowers CHAIR_s and keeps recall: {', '.join(helps)}" if helps else "does not help"
    return f"**{title} {verdict}.** {'; '.join(parts)}."


def _differences(row: Row) -> str:
    return ", ".join(_difference(name, row.figures[name].difference) for name in SHOWN)


def _difference(name: str, difference: Difference | None) -> str:
    measure = MEASURES[name]
    mark = "" if improves(measure, difference) is not None else " (undecided)"
    part = " adversarial" if measure.part == "adversarial" else ""
    return f"{measure.title}{part} {Spelling(measure).difference(difference)}{mark}"


def _effect(row: Row, name: str) -> bool | None:
    return improves(MEASURES[name], row.figures[name].difference)


def _value(row: Row, name: str) -> str:
    return Spelling(MEASURES[name]).value(row.figures[name].interval.value)
