"""`qkedit gate`: fail a pipeline when a result does not meet its requirements."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli.flags.flag import flag
from qkedit.cli.output import command
from qkedit.errors import VerificationError, counted


def gate(
    context: typer.Context,
    result: Annotated[
        list[Path], typer.Argument(metavar="RESULT", help="Result files, or the directories of runs: one or several.")
    ],
    require: Annotated[
        list[str] | None,
        flag(
            "--require", help="A requirement such as 'chair_s<=0.40' or 'pope.adversarial.f1>=0.80'; may be repeated."
        ),
    ] = None,
    baseline: Annotated[
        list[Path] | None, flag("--baseline", help="The result file that --no-worse compares with; may be repeated.")
    ] = None,
    no_worse: Annotated[
        list[str] | None,
        flag("--no-worse", help="A metric and how much it may lose, such as 'recall:0.02'; may be repeated."),
    ] = None,
) -> None:
    """Check a result against requirements: exit code 3 when one is not met.

    RESULT is what `qkedit score --json`, `eval`, `drift` or `compare --json`
    wrote. A metric is named f1, random.f1, pope.f1 or pope.random.f1, whichever
    means one figure. Shares are from 0 to 1. A metric without a value meets no
    requirement. Several files, such as CHAIR's and the caption scores of the
    same answers, are held to their requirements together.

    Example: qkedit gate edited/result.json --require 'pope.adversarial.f1>=0.80' --require 'chair_s<=0.40'
    """
    with command(context) as output:
        from qkedit.api.requirements import gate as check
        from qkedit.report.terminal_text import lines

        checks = check(*result, require=require or (), no_worse=no_worse or (), baseline=baseline or ())
        fields = {"passed": all(found.passed for found in checks), "checks": [asdict(found) for found in checks]}
        human = lines(*map(str, checks))
        failed = tuple(found.requirement for found in checks if not found.passed)
        if failed:
            error = VerificationError(
                f"{len(failed)} of {counted(len(checks), 'requirement')} not met: " + ", ".join(failed),
                where=", ".join(map(str, result)),
                remedy="do not ship this model, or ask for less",
                mismatches=failed,
            )
            output.mismatch(fields, human, error)
        output.result(fields, human)
