"""Distinguish a correct refusal from everything else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from io import StringIO
from typing import Any
from unicodedata import bidirectional, category

import typer

from fuzzing.target import Finding, Outcome
from qkedit.cli.output import Output
from qkedit.errors import LONGEST_PART, QkeditError

LONGEST_SENTENCE = 3 * LONGEST_PART + 100
# Control characters, surrogates, line separators, and marks that change the direction of writing.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def attempt(action: Callable[[], Any]) -> Outcome:
    """Return whether an action is done or refused in one sentence; any other exception passes through."""
    try:
        action()
    except QkeditError as error:
        check_error(error)
        return Outcome.REFUSED
    return Outcome.ACCEPTED


def check_error(error: QkeditError) -> None:
    """Raise Finding unless an error is printed as one sentence."""
    terminal = StringIO()
    with redirect_stderr(terminal), suppress(typer.Exit):
        Output("fuzz").failure(error)
    check_sentence(terminal.getvalue())


def is_sentence(text: str) -> bool:
    """Return whether a message ends like one sentence, or like a question if it is a guess (`did you mean`)."""
    return (text.endswith(".") and not text.endswith("..")) or (text.endswith("?") and "did you mean " in text)


def check_sentence(printed: str) -> None:
    """Raise Finding unless a command's standard error is one sentence after `error: `."""
    lines = printed.split("\n")
    problem = None
    if len(lines) != 2 or lines[1] or not lines[0].startswith("error: "):
        problem = "is not one line"
    elif any(category(letter) in STEERING or bidirectional(letter) in TURNING for letter in lines[0]):
        problem = "contains control characters"
    elif "report what it prints" in lines[0]:
        problem = "is the message for a fault of qkedit itself"
    elif not is_sentence(lines[0]):
        problem = "does not end like a sentence"
    elif len(lines[0]) > LONGEST_SENTENCE:
        problem = f"has {len(lines[0])} characters"
    if problem:
        raise Finding("sentence", f"{problem}: {printed[:600]!a}")
