"""Compare several runs with one base, with the p-values of all of them corrected together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qkedit.evaluation.files.result_files import ScoredRun
from qkedit.evaluation.statistics.comparison import RunComparison, compare, corrected_together


@dataclass(frozen=True)
class ArmsComparison:
    """The comparison of each arm with the base.

    Attributes:
        base: the name of the base.
        arms: the comparison of each other arm with the base, by name; all have the same splits and items.
        tests: the number of p-values that were corrected together.
    """

    base: str
    arms: Mapping[str, RunComparison]
    tests: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the comparison, by arm."""
        return tuple(f"{name}: {sentence}" for name, found in self.arms.items() for sentence in found.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: found.as_dict() for name, found in self.arms.items()}


def compare_with_base(base: str, runs: Mapping[str, ScoredRun]) -> ArmsComparison:
    """Compare each run with the base's run on the items that they share.

    Among many arms, one differs by chance, so Holm's method corrects the p-values of all arms together.

    Args:
        base: the name of the base's run.
        runs: the runs by name, including the base's.

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
