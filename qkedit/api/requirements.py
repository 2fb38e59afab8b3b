"""Check a result against requirements from Python: what `gate` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkedit.evaluation.statistics.gate import Check


def gate(
    *results: str | Path,
    require: Sequence[str] = (),
    no_worse: Sequence[str] = (),
    baseline: Sequence[str | Path] = (),
) -> tuple[Check, ...]:
    """Check results against requirements; return one check for each, which is `passed` or not.

    Args:
        results: result files, or the directories of runs: those of `evaluate`, or what a command printed as JSON.
        require: limits such as `"chair_s<=0.40"` or `"pope.adversarial.f1>=0.80"`.
        no_worse: metrics and how much they may lose against the baseline, such as `"recall:0.02"`.
        baseline: result files to compare with.

    Raises:
        QkeditError: nothing is required, a requirement means no figure or several, or a file cannot be read.

    Example:
        >>> checks = qkedit.gate("edited/result.json", require=["chair_s<=0.40"])
        >>> all(check.passed for check in checks)
    """
    from qkedit.errors import UsageError
    from qkedit.evaluation.files.result_files import read_metrics
    from qkedit.evaluation.statistics.gate import gate as check
    from qkedit.evaluation.statistics.gate import parse_requirement
    from qkedit.evaluation.statistics.guard import parse_guard

    requirements = [parse_requirement(text) for text in require]
    tolerances = [parse_guard(text) for text in no_worse]
    if not requirements and not tolerances:
        raise UsageError("nothing is required", where="--require", remedy="give a limit such as 'chair_s<=0.40'")
    if bool(tolerances) != bool(baseline):
        raise UsageError(
            "one of them is given alone", where="--baseline and --no-worse", remedy="give both, or --require"
        )
    return check(
        [measured for file in results for measured in read_metrics(Path(file))],
        requirements,
        tolerances,
        [measured for file in baseline for measured in read_metrics(Path(file))],
    )
