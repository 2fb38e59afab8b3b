"""Test that docs/api.md agrees with the docstrings, and names every public name."""

from __future__ import annotations

import qkedit
from tests.paths import ROOT
from tests.scripts.loading import load_script


def test_the_document_is_up_to_date() -> None:
    script = load_script("api_document")
    assert (ROOT / "docs" / "api.md").read_text("utf-8") == script.document(), (
        "run python scripts/documents/api_document.py"
    )


def test_every_public_name_is_in_a_chapter() -> None:
    script = load_script("api_document")
    named = [name for names in script.CHAPTERS.values() for name in names]
    assert sorted(named) == sorted(set(qkedit.__all__) - {"__version__"})
