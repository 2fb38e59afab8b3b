"""Test that every script can be imported with only its own folder on Python's path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS, load_script

RUN = sorted(file for file in SCRIPTS.rglob("*.py") if 'if __name__ == "__main__"' in file.read_text("utf-8"))
LOCAL = {place.stem for file in RUN for place in file.parent.iterdir()}


@pytest.mark.parametrize("script", RUN, ids=lambda file: str(file.relative_to(SCRIPTS)))
def test_a_script_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The folders of tests are not on the path of a user's script; qkedit is installed.
    others = [place for place in sys.path if not Path(place or ".").resolve().is_relative_to(SCRIPTS)]
    monkeypatch.setattr(sys, "path", [str(script.parent), *others, str(ROOT)])
    for name in [name for name in sys.modules if name.partition(".")[0] in LOCAL]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    load_script(script.stem)
    for name in [name for name in set(sys.modules) - before if name.partition(".")[0] in LOCAL]:
        del sys.modules[name]
