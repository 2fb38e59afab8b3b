"""The attention of a model's answers as tables and sentences for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType

from qkedit.errors import counted
from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis, Shares
from qkedit.evaluation.statistics.auroc import Auroc
from qkedit.report.fitting_table import FittingTable
from qkedit.report.terminal_text import on_one_line
from qkedit.selection import describe

GROUPS = ("first", "before", "image", "behind", "generated")
# The attribute of a layer, and whose attention it is.
KINDS = {"tokens": "all tokens", "true": "true mentions", "hallucinated": "hallucinated mentions"}


def attention_report(found: AttentionDiagnosis) -> RenderableType:
    """Return everything that was measured, 80 columns wide."""
    parts: list[RenderableType] = [
        "Shares of attention in %, by the place in the prompt or in the answer so far;",
        "on the right the same without the prompt's first column.",
    ]
    for kind, title in KINDS.items():
        if any(getattr(layer, kind) is not None for layer in found.layers):
            parts += ["", on_one_line(f"{title[0].upper()}{title[1:]}:"), _table(found, kind)]
    return Group(*parts, "", *map(on_one_line, sentences(found)))


def sentences(found: AttentionDiagnosis) -> Iterator[str]:
    """Yield what the tables do not say: counts, kinds of layers, and the visual attention ratio."""
    yield f"{counted(found.answers, 'answer')} with {counted(found.tokens, 'token')}."
    kinds: dict[str, list[int]] = {}
    for layer in found.layers:
        kinds.setdefault(layer.kind, []).append(layer.layer)
    for kind, layers in kinds.items():
        if kind != "full_attention":
            measured = any(found.layers[layer].tokens is not None for layer in layers)
            what = "they see a part of the columns" if measured else "they have no attention to measure"
            yield f"Layers {describe(layers)}: {kind.replace('_', ' ')}; {what}."
    if found.without_truth:
        yield f"{counted(found.without_truth, 'answer')} without ground truth."
    if found.ratio is None:
        yield "There is no visual attention ratio: none of its layers attends to all columns."
        return
    yield f"Visual attention ratio (layers {describe(found.ratio_layers)}): {found.ratio:.3f} over all tokens."
    if found.mentions is None:
        return
    for is_hallucinated in (False, True):
        number = sum(mention.hallucinated == is_hallucinated for mention in found.mentions)
        ratio = found.mean_ratio(hallucinated=is_hallucinated)
        name = f"{'hallucinated' if is_hallucinated else 'true'} mention"
        yield f"{counted(number, name)}{'' if ratio is None else f', ratio {ratio:.3f}'}."
    if found.auroc is not None:
        level = f"{100 * found.auroc.level:.0f} %"
        yield f"How well hallucinated mentions are told from true ones (AUROC, {level} interval):"
        yield f"  by a low ratio               {spelled_auroc(found.auroc)}"
    if found.auroc_of_place is not None:
        yield f"  by a late place in the text  {spelled_auroc(found.auroc_of_place)}"


def spelled_auroc(found: Auroc) -> str:
    """Return the value with its interval, as in `0.740 [0.663, 0.811]`."""
    if found.value is None:
        return "none, as there are not mentions of both kinds"
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def figures(shares: Shares) -> tuple[list[str], list[str]]:
    """Return the five shares and the four without the first column, in percent; empty where there is none."""
    rest = shares.without_first
    return (
        [_percent(getattr(shares, group)) for group in GROUPS],
        [_percent(rest[group]) for group in GROUPS if group != "first"],
    )


def _table(found: AttentionDiagnosis, kind: str) -> FittingTable:
    titles = ["first", "before", "image", "behind", "answer"]
    table = FittingTable("layer", *titles, "│", *titles[1:], right=["layer", *titles])
    for layer in found.layers:
        shares: Shares | None = getattr(layer, kind)
        if shares is not None:
            with_first, without = figures(shares)
            table.add_row(str(layer.layer), *with_first, "│", *without)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
