"""Run whole commands in this process, and judge their output and exit codes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fuzzing.judging import check_error, check_sentence
from fuzzing.target import Finding, Outcome
from qkedit.errors import QkeditError
from tests.cli.command import Result, qkedit

# Exit codes: done, failed, wrong usage, a check failed.
CODES = (0, 1, 2, 3)


def command(*words: str | Path) -> Outcome:
    """Run `qkedit WORDS`, and return whether it was done or refused in one sentence."""
    return judged(qkedit(*words))


def judged(result: Result, *, codes: tuple[int, ...] = CODES) -> Outcome:
    """Judge a run that has ended. Raises Finding."""
    if result.code not in codes:
        raise Finding("exit", f"code {result.code}: {result.stderr[-800:]!a}")
    if "Traceback" in result.stderr:
        raise Finding("traceback", ascii(result.stderr[-800:]))
    if result.code == 0:
        return Outcome.ACCEPTED
    if not result.stderr and not result.stdout:
        raise Finding("sentence", f"code {result.code} without a word")
    if not result.stderr:  # --json
        said = result.document["error"]
        check_error(QkeditError(said["what"], where=said["where"], remedy=said["remedy"]))
        return Outcome.REFUSED
    # Warnings may come before it.
    *before, last = result.stderr.removesuffix("\n").split("\n")
    if any(not line.startswith("warning: ") for line in before):
        raise Finding("sentence", f"more than one line: {result.stderr[-800:]!a}")
    check_sentence(f"{last}\n")
    return Outcome.REFUSED


def in_directory(directory: Path, action: Callable[[], Outcome]) -> Outcome:
    """Run an action with this working directory."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        return action()
    finally:
        os.chdir(before)
