"""The language libraries of the official caption scorers, with their data."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.captions import language as caption_language
from tests.evaluation.published import DATA, skip_without_data


@pytest.fixture(scope="session")
def language() -> Path:
    """A data directory with which nltk and PatternLite do all they are asked; the test is skipped without."""
    try:
        caption_language.tokenizer(DATA)
        caption_language.tagger(DATA)
        caption_language.lemmatizer(DATA)
        caption_language.singularizer()
    except QkeditError as missing:
        skip_without_data(str(missing))
    return DATA
