"""Simple rules for words that replace nltk's data where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.captions import language

# Words are separated by spaces, every word is a noun, and a plural is a word with an s.
PLAIN: dict[str, Callable[..., Any]] = {
    "tokenizer": lambda: str.split,
    "tagger": lambda: lambda tokens: ["NN"] * len(tokens),
    "lemmatizer": lambda: lambda word, part: word.removesuffix("s"),
    "singularizer": lambda: lambda word: word.removesuffix("s"),
}


def plain_where_missing() -> ExitStack:
    """Replace the unavailable parts of `captions.language` until the result is closed."""
    replaced = ExitStack()
    for name, make in PLAIN.items():
        try:
            getattr(language, name)()
        except QkeditError:
            replaced.enter_context(patch.object(language, name, lambda data=None, make=make: make()))
    return replaced
