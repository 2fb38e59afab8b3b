"""Compare several runs with one base, with the p-values of all of them corrected together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qkedit.evaluation.files.result_files import ScoredRun
from qkedit.evaluation.statistics.comparison import RunComparison, compare, corrected_together


@dataclass(frozen=True)
class ArmsComparison:
    """Each arm against the base.

    Attributes:
        base: what the base is called.
        arms: the comparison of each other arm with the base, by its name; all of the same splits and items.
        tests: how many p-values were corrected together.
    """

    base: str
    arms: Mapping[str, RunComparison]
    tests: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting it, by arm."""
        return tuple(f"{name}: {sentence}" for name, found in self.arms.items() for sentence in found.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {name: found.as_dict() for name, found in self.arms.items()}


def compare_with_base(base: str, runs: Mapping[str, ScoredRun]) -> ArmsComparison:
    """Compare each run with that of the base on the items that they share.

    Whoever tries many arms finds one that moved, so Holm's method corrects the p-values of all arms together.

    Args:
        base: the name of the base's run.
        runs: by name, that of the base among them.

    Raises:
        UsageError: two runs cannot be compared; see `compare`.
        QkeditError: scipy is not installed.
    """
    found = {name: compare(runs[base], run) for name, run in runs.items() if name != base}
    splits, tests = corrected_together([split for one in found.values() for split in one.splits])
    left = iter(splits)
    arms = {
        name: replace(one, splits=tuple(next(left) for _ in one.splits), tests=tests) for name, one in found.items()
    }
    return ArmsComparison(base, arms, tests)
