"""Test that numbers in documents equal those of the code."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.scripts.loading import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("document_numbers")


def test_all_numbers_are_up_to_date(script: ModuleType) -> None:
    for file in script.documents():
        text = file.read_text("utf-8")
        assert text == script.written(file, text), "run python scripts/documents/document_numbers.py"


def test_every_count_of_families_or_aliases_is_marked(script: ModuleType) -> None:
    """Refuse unmarked numbers of things that the code counts, which would become stale."""
    bare = re.compile(r"(?<!-->)\b\d+ (model )?famil(y|ies)\b")
    for file in script.documents():
        assert not bare.search(file.read_text("utf-8")), file


def test_a_stale_number_is_replaced_and_an_unknown_mark_is_an_error(script: ModuleType) -> None:
    readme = script.ROOT / "README.md"
    families = script.numbers()["families"]
    marked = "<!--families-->{}<!--/--> families"
    assert script.written(readme, marked.format(1)) == marked.format(families)
    with pytest.raises(KeyError):
        script.written(readme, "<!--nonsense-->1<!--/-->")
    assert script.written(script.ROOT / "CITATION.cff", "version: 0.0.0\n") != "version: 0.0.0\n"
