"""Format scores: as tables for people, and as one line per answer for tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.text import Text

from qkedit.evaluation.files.records import Score
from qkedit.evaluation.files.score_json import item_as_dict
from qkedit.report.fitting_table import FittingTable
from qkedit.strict_text import json_lines


def score_tables(title: str, scores: Sequence[Score]) -> Iterator[RenderableType]:
    """Yield one table for each run of scores with the same metrics, one row per split.

    Args:
        title: the title of the benchmark.
        scores: the scores of one benchmark.
    """
    for number, (metrics, group) in enumerate(groupby(scores, key=lambda score: tuple(score.metrics))):
        if number:
            yield ""
        alike = list(group)
        rules = ", ".join(dict.fromkeys(f"{score.rule_kind} {score.rule}" for score in alike))
        yield Text(f"{title}, {rules}", style="bold")
        with_splits = any(score.split is not None for score in alike)
        figures = ("answers", *metrics)
        table = FittingTable(*(["split"] if with_splits else []), *figures, right=figures)
        for score in alike:
            split = [score.split or ""] if with_splits else []
            table.add_row(*split, str(score.n), *(figure(score.metrics[name]) for name in metrics))
        yield table


def figure(value: float | None) -> str:
    """Format a metric for people: shares with four digits, points and words with two, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def items_as_lines(scores: Sequence[Score], without: Sequence[str] = ()) -> str:
    """Return one JSON line per answer, with its benchmark, its split and the fields of its item.

    Args:
        scores: the scores of any benchmarks.
        without: splits to leave out because other splits have the same items.
    """
    rows = (
        {"benchmark": score.benchmark, "split": score.split, **item_as_dict(item)}
        for score in scores
        if score.split not in without
        for item in score.items
    )
    return json_lines(rows)
