"""Test that mentions have the right positions and the objects that CHAIR reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.evaluation.benchmarks.chair.mentions import mention_finder
from qkedit.evaluation.benchmarks.chair.words import VARIANTS, reader
from tests.evaluation.benchmarks.chair.test_words import SYNONYMS

CAPTIONS = {
    "Two wine glasses, a Wine Glass\nand hot dogs.": ["wine glasses", "Wine Glass", "hot dogs"],
    'A "teddy bear" on the toilet seat; the seat is white.': ["teddy bear", "toilet seat"],
    "The dog's puppies can't see people. A home plate (a plate)": ["dog", "puppies", "people", "plate"],
    "İn a passenger train, children": ["passenger train", "children"],
    "": [],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("caption", CAPTIONS)
def test_mentions_have_the_positions_of_their_words(language: Path, caption: str, variant: str) -> None:
    found = mention_finder(SYNONYMS, variant, language)(caption)
    assert [caption[mention.start : mention.end] for mention in found] == CAPTIONS[caption]
    assert tuple(mention.object for mention in found) == reader(SYNONYMS, variant, language)(caption).objects
