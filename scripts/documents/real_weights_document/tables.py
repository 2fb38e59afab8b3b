"""The tables of the section, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from qkedit.evaluation.files.records import MeasuredItem
from qkedit.evaluation.metric import Metric
from qkedit.evaluation.statistics.intervals import interval, paired
from qkedit.inspection.spectra import inspect
from qkedit.laboratory.arms import Arm
from qkedit.report.spectra.summary import layer_row
from qkedit.selection import describe, select_layers
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions
from real_weights_document.arms import CONTROLS, EDIT, EDITS, FOLDED, MIDDLE, PROTECTED, SPARED, SYMMETRIC
from real_weights_document.measures import COPYING, GRAMMAR, LOSS, SAME, having, pooled
from real_weights_document.results import Results

RESAMPLES = 5_000


def perplexity(items: Sequence[MeasuredItem]) -> float:
    """Return exp of the mean loss of all tokens."""
    return math.exp(LOSS.value_of(items) or 0.0)


def spectrum_lines(model: str) -> Iterator[str]:
    """Yield a table of the spectra by layer: shares of the strongest modes, effective rank, symmetric share."""
    layers = inspect(plan_for(model, SteerOptions("all", device="cpu", allow_text_only=True))).layers
    yield "| layer | top 1 | top 2 | top 4 | top 8 | effective rank | symmetric | smallest gap at k 4 |"
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|"
    rows = []
    for layer in layers:
        row = layer_row(layer)
        tops = [fmean(_share(head.singular_values, k) for head in layer.heads) for k in (1, 2, 4, 8)]
        rows.append((layer.layer, [*tops, row.effective_rank, row.symmetric_share or 0.0, row.gap_at_k or 0.0]))
    for number, values in rows:
        yield _spectrum_row(str(number), values)
    middle = set(select_layers(MIDDLE, len(rows), range(len(rows))))
    for name, kept in (("all", set(range(len(rows)))), (f"{describe(sorted(middle))}", middle)):
        columns = zip(*(values for number, values in rows if number in kept), strict=True)
        yield _spectrum_row(f"mean {name}", [fmean(column) for column in columns])


def cost_lines(results: Results) -> Iterator[str]:
    """Yield the table of costs: each edit and control as differences from the unedited model, with intervals."""
    base = results.of(Arm("base"))
    assert base is not None
    texts = having(base, LOSS)
    own = [item for item in texts if item.id.startswith("own")]
    yield (
        f"Unedited: perplexity {perplexity(own):.1f} on our paragraphs and {perplexity(texts):.1f} on all texts "
        f"({sum(item.sums['loss'][1] for item in texts):,.0f} tokens),"
    )
    yield f"copying {_share_of(base, COPYING)}, verbs that agree {_share_of(base, GRAMMAR)}."
    yield ""
    yield "| edit | energy | loss − base | same token % | copying − base | agreeing verbs − base |"
    yield "|:--|--:|--:|--:|--:|--:|"
    known = {arm.name: items for arm in EDITS if (items := results.of(arm)) is not None}
    for arm in EDITS:
        if arm.name in known:
            yield _cost_row(arm.name, results.facts_of(arm)["energy_removed"], base, known[arm.name])
    pools = {}
    for name, (edit, arms) in CONTROLS.items():
        each = [items for arm in arms if (items := results.of(arm)) is not None]
        if each:
            pools[name] = (edit, pooled(each))
            removed = fmean(results.facts_of(arm)["energy_removed"] for arm in arms if results.of(arm) is not None)
            yield _cost_row(f"{name}, {len(each)} seeds", removed, base, pools[name][1])
            yield f"|   lowest to highest |  | {_range(base, each, LOSS, 1)} | {_range(None, each, SAME, 100)} " + (
                f"| {_range(base, each, COPYING, 100)} | {_range(base, each, GRAMMAR, 100)} |"
            )
    yield ""
    yield "| difference | loss | same token | copying | agreeing verbs |"
    yield "|:--|--:|--:|--:|--:|"
    for name, (edit, items) in pools.items():
        yield _between(edit.name, name.partition(" of ")[0], known[edit.name], items)
    pairs = ((SYMMETRIC, EDIT), (PROTECTED[0], EDIT), (SPARED, EDIT), (FOLDED, EDIT), (SYMMETRIC, PROTECTED[0]))
    for edit, other in pairs:
        if edit.name in known and other.name in known:
            yield _between(edit.name, other.name, known[edit.name], known[other.name])


def sample_lines(texts: Sequence[str]) -> Iterator[str]:
    """Yield samples of the unedited model."""
    yield "The unedited model writes (greedy, each from its first words):"
    yield ""
    for text in texts:
        yield f"> {text}"
        yield ">"


def _spectrum_row(name: str, values: Sequence[float]) -> str:
    *shares, effective, symmetric, gap = values
    cells = [*(f"{100 * share:.0f}%" for share in shares), f"{effective:.1f}", f"{100 * symmetric:.0f}%", f"{gap:.3f}"]
    return f"| {name} | {' | '.join(cells)} |"


def _share(values: Sequence[float], k: int) -> float:
    squares = [value**2 for value in values]
    return sum(squares[:k]) / sum(squares)


def _cost_row(name: str, removed: float, base: Sequence[MeasuredItem], items: Sequence[MeasuredItem]) -> str:
    same = interval(having(items, SAME), SAME, method="bootstrap", resamples=RESAMPLES)
    ends = [100 * (value or 0.0) for value in (same.value, same.low, same.high)]
    return (
        f"| {name} | {100 * removed:.0f}% | {_difference(base, items, LOSS, 1)} | {ends[0]:.0f} [{ends[1]:.0f}, "
        f"{ends[2]:.0f}] | {_difference(base, items, COPYING, 100)} | {_difference(base, items, GRAMMAR, 100)} |"
    )


def _between(edit: str, control: str, ours: Sequence[MeasuredItem], theirs: Sequence[MeasuredItem]) -> str:
    cells = [_difference(theirs, ours, LOSS, 1)]
    cells += [_difference(theirs, ours, metric, 100) for metric in (SAME, COPYING, GRAMMAR)]
    return f"| {edit} − {control} | {' | '.join(cells)} |"


def _difference(base: Sequence[MeasuredItem], items: Sequence[MeasuredItem], metric: Metric, times: float) -> str:
    found = paired(having(base, metric), having(items, metric), metric, resamples=RESAMPLES)
    values = [times * (value or 0.0) for value in (found.value, found.low, found.high)]
    form = "{:+.2f} [{:+.2f}, {:+.2f}]" if times == 1 else "{:+.0f} [{:+.0f}, {:+.0f}]"
    return form.format(*values).replace("-", "−")


def _range(
    base: Sequence[MeasuredItem] | None, each: Sequence[Sequence[MeasuredItem]], metric: Metric, times: float
) -> str:
    start = (metric.value_of(having(base, metric)) or 0.0) if base is not None else 0.0
    values = [times * ((metric.value_of(having(items, metric)) or 0.0) - start) for items in each]
    form = "{:+.2f}" if times == 1 else "{:+.0f}" if base is not None else "{:.0f}"
    return f"{form.format(min(values))} to {form.format(max(values))}".replace("-", "−")


def _share_of(items: Sequence[MeasuredItem], metric: Metric) -> str:
    found = interval(having(items, metric), metric, method="bootstrap", resamples=RESAMPLES)
    return f"{100 * (found.value or 0):.0f} % [{100 * (found.low or 0):.0f}, {100 * (found.high or 0):.0f}]"
