"""Read result files: the envelope that `qkedit score`, `eval`, `compare` and `drift` print, with its `results`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qkedit.errors import QkeditError
from qkedit.evaluation.records import RULE_KINDS, Score, score_from_dict

# What a run leaves in its output directory.
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Measured:
    """The metrics of one split of one benchmark, or of anything else that was measured.

    Attributes:
        benchmark: its name, such as `pope` or `drift`.
        split: None where there are none.
        metrics: by plain name; None where a metric has no value.
        rule: the parser or variant that scored it; None where there is none.
    """

    benchmark: str
    split: str | None
    metrics: Mapping[str, float | None]
    rule: str | None = None

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"


@dataclass(frozen=True)
class ScoredRun:
    """A result file with its items.

    Attributes:
        file: where it was read.
        document: the whole envelope, for what else it says about the run.
        scores: one for each split.
    """

    file: Path
    document: Mapping[str, Any]
    scores: tuple[Score, ...]


def read_scores(file: Path) -> ScoredRun:
    """Read a result file with its items.

    Args:
        file: the file, or the directory of a run that holds `result.json`.

    Raises:
        QkeditError: it cannot be read, is no result file, or holds results without items.
    """
    document = _read(file)
    scores = []
    for number, row in enumerate(document["results"]):
        where = f"{file}: results: {number}"
        if isinstance(row, dict) and "items" not in row:
            raise _wrong(where, "has no items, so that it cannot be compared item by item")
        scores.append(score_from_dict(row, where))
    return ScoredRun(file, document, tuple(scores))


def read_metrics(file: Path) -> tuple[Measured, ...]:
    """Read the metrics of a result file, whatever else it holds.

    Args:
        file: the file, or the directory of a run that holds `result.json`.

    Raises:
        QkeditError: it cannot be read or is no result file.
    """
    measured = []
    for number, row in enumerate(_read(file)["results"]):
        where = f"{file}: results: {number}"
        if not isinstance(row, dict):
            raise _wrong(where, "is no JSON object")
        benchmark, split, metrics = row.get("benchmark"), row.get("split"), row.get("metrics")
        if not isinstance(benchmark, str) or not isinstance(split, str | None) or not isinstance(metrics, dict):
            raise _wrong(where, "does not hold a benchmark, a split and metrics")
        for name, value in metrics.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not is_number:
                raise _wrong(f"{where}: metrics: {name}", "is neither a number nor null")
        rule = next((str(row[kind]) for kind in RULE_KINDS if kind in row), None)
        measured.append(Measured(benchmark, split, metrics, rule))
    return tuple(measured)


def _read(file: Path) -> dict[str, Any]:
    path = file / RESULT_FILE if file.is_dir() else file
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise QkeditError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the name") from error
    except UnicodeDecodeError as error:
        raise _wrong(str(path), f"is no UTF-8 at byte {error.start}") from error
    try:
        document = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _wrong(str(path), f"is no valid JSON ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), list):
        failure = document.get("error") if isinstance(document, dict) else None
        if isinstance(failure, dict):
            raise _wrong(str(path), f"is what a failed run left ({failure.get('what')})")
        raise _wrong(str(path), "holds no list of results")
    if not document["results"]:
        raise _wrong(str(path), "holds no result")
    return document


def _wrong(where: str, what: str) -> QkeditError:
    return QkeditError(what, where=where, remedy="give what `qkedit score --json` or `qkedit eval` wrote")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
