"""Test that docs/families.md agrees with the tests' checkpoints."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "families_document", ROOT / "scripts/documents/families_document.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date(script: ModuleType) -> None:
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    # With another version of transformers the rows must be equal; the named version is that of the last full test.
    version = re.search(r"Tested with transformers (\S+)\.\s", text)
    assert version is not None
    assert text == script.document(version[1]), "run python scripts/documents/families_document.py"
