"""Read result files: the envelope that `qkedit score`, `eval`, `compare` and `drift` print, with its `results`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from qkedit.errors import QkeditError
from qkedit.evaluation.files.json_rows import read_object
from qkedit.evaluation.files.records import RULE_KINDS, Score
from qkedit.evaluation.files.score_json import check_names, check_number, score_from_dict

# The name of the result file in a run's output directory.
RESULT_FILE = "result.json"
# The status of a document whose results count.
DONE = "done"


@dataclass(frozen=True)
class Measured:
    """The metrics of one split of one benchmark, or of anything else that was measured.

    Attributes:
        benchmark: the benchmark's name, such as `pope` or `drift`.
        split: the split; None for a benchmark without splits.
        metrics: the metrics by plain name; None for a metric without a value.
        rule: the parser or variant that scored it; None if there is none.
        n: the number of answers; None if the file lacks it.
        ids: the sorted ids of the questions; None if the file has no items.
        truths: the ground truth of each of these items, as JSON; None if the file lacks it.
        questions: the SHA-256 of the questions from the record of the run; None without such a record.
    """

    benchmark: str
    split: str | None
    metrics: Mapping[str, float | None]
    rule: str | None = None
    n: int | None = None
    ids: tuple[str, ...] | None = None
    truths: tuple[str, ...] | None = None
    questions: str | None = None

    @property
    def name(self) -> str:
        """`benchmark.split`, or the benchmark alone."""
        return self.benchmark if self.split is None else f"{self.benchmark}.{self.split}"


@dataclass(frozen=True)
class ScoredRun:
    """A result file with its items.

    Attributes:
        file: the file that was read.
        document: the whole envelope, with everything else it says about the run.
        scores: one score per split.
    """

    file: Path
    document: Mapping[str, Any]
    scores: tuple[Score, ...]


def read_scores(file: Path) -> ScoredRun:
    """Read a result file with its items.

    Args:
        file: the file, or the directory of a run that holds `result.json`.

    Raises:
        QkeditError: it cannot be read, is not a result file, or holds results without items.
    """
    document = _read(file)
    scores = []
    for number, row in enumerate(document["results"]):
        where = f"{file}: results: {number}"
        if isinstance(row, dict) and "items" not in row:
            raise _wrong(where, "has no items, so it cannot be compared item by item")
        scores.append(score_from_dict(row, where))
    return ScoredRun(file, document, tuple(scores))


def read_metrics(file: Path) -> tuple[Measured, ...]:
    """Read the metrics of a result file, and ignore everything else in it.

    Args:
        file: the file, or the directory of a run that holds `result.json`.

    Raises:
        QkeditError: it cannot be read or is not a result file.
    """
    document = _read(file)
    return tuple(
        _measured(row, document.get("run"), f"{file}: results: {number}")
        for number, row in enumerate(document["results"])
    )


def _measured(row: Any, run: Any, where: str) -> Measured:
    if not isinstance(row, dict):
        raise _wrong(where, "is not a JSON object")
    benchmark, split, metrics = row.get("benchmark"), row.get("split"), row.get("metrics")
    if not isinstance(benchmark, str) or not isinstance(split, str | None) or not isinstance(metrics, dict):
        raise _wrong(where, "does not hold a benchmark, a split and metrics")
    check_names(metrics, where)
    for name, value in metrics.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not is_number:
            raise _wrong(f"{where}: metrics: {name}", "is neither a number nor null")
    n = row.get("n")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 0):
        raise _wrong(f"{where}: n", "is not a whole number from 0 on")
    rule = next((str(row[kind]) for kind in RULE_KINDS if kind in row), None)
    found = Measured(benchmark, split, metrics, rule, n)
    if isinstance(items := row.get("items"), list):
        check_number(n, items, where)
        asked = sorted(map(_asked, (item for item in items if isinstance(item, dict))))
        found = replace(found, ids=tuple(name for name, _ in asked), truths=tuple(truth for _, truth in asked))
    return replace(found, questions=_questions(run, found))


def _asked(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return the subject of an item (a question's id, for drift a picture's name) and its ground truth."""
    # Directories differ between machines.
    name = item.get("id") or PureWindowsPath(str(item.get("image"))).name
    return str(name), json.dumps(item.get("truth"))


def _questions(run: Any, measured: Measured) -> str | None:
    """Return the hash of the questions; a benchmark with a single set of questions has one hash for all its splits."""
    asked = run.get("questions") if isinstance(run, dict) else None
    if not isinstance(asked, dict):
        return None
    part = asked.get(measured.name, asked.get(measured.benchmark))
    return str(part["sha256"]) if isinstance(part, dict) and "sha256" in part else None


def _read(file: Path) -> dict[str, Any]:
    path = file / RESULT_FILE if file.is_dir() else file
    if path is not file and not path.is_file():
        raise _wrong(str(file), f"holds no {RESULT_FILE}, as a finished run does")
    document = read_object(path)
    failure = document.get("error")
    if document.get("status", DONE) != DONE or (failure and "results" not in document):
        what = failure.get("what") if isinstance(failure, dict) else None
        raise _wrong(str(path), f"was left by a failed run{f' ({what})' if what else ''}")
    if not isinstance(document.get("results"), list):
        raise _wrong(str(path), "holds no list of results")
    if not document["results"]:
        raise _wrong(str(path), "holds no result")
    return document


def _wrong(where: str, what: str) -> QkeditError:
    return QkeditError(what, where=where, remedy="give what `qkedit score --json` or `qkedit eval` wrote")
