"""Test the measurement of the crowded model's edits: matched controls, and a document that has every arm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script


@pytest.fixture(autouse=True)
def scripts_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS / "documents"))
        yield
    for name in [name for name in sys.modules if name.startswith("laboratory_document")]:
        del sys.modules[name]


def test_controls_differ_from_their_edit_by_the_control_alone() -> None:
    arms = load_script("crowded_demo").edited_arms(2)
    assert len({arm.name for arm in arms}) == len(arms) == 9
    assert [arm.group for arm in arms if arm.steer is None] == ["base"]
    for arm in arms[1:]:
        edit = next(other for other in arms if other.name == arm.group.partition(",")[0])
        assert arm.steer is not None
        assert edit.steer is not None
        assert arm.steer.suppression.channel == edit.steer.suppression.channel == edit.name
        assert arm.steer.suppression.k == edit.steer.suppression.k == 4
        assert (arm.steer.suppression.control == "none") == (arm is edit)


def test_the_page_has_every_arm() -> None:
    script = load_script("crowded_demo")
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    written = import_module("laboratory_document.sections").section(text, "scripts/documents/crowded_demo.py", "")
    for group in {arm.group for arm in script.edited_arms(2)}:
        assert sum(line.startswith(f"| {group} |") for line in written) == 2  # captions and questions
