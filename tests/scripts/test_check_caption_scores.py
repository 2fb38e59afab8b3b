"""Test the check against pycocoevalcap: its captions, and its message if it is skipped."""

from __future__ import annotations

import sys

import pytest

from tests.scripts.loading import load_script


def test_a_skipped_check_prints_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("check_caption_scores")
    monkeypatch.setattr(sys, "argv", ["check_caption_scores.py"])
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main() == 0
    assert capsys.readouterr().err.startswith("SKIPPED, nothing was checked: pycocoevalcap is not installed")
    # Without Java, the script tries to install it and then skips the check.
    ran: list[list[str]] = []
    monkeypatch.setattr(script, "find_spec", lambda name: name)
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    monkeypatch.setattr(script.shutil, "which", lambda name: None if name == "java" else f"/usr/bin/{name}")
    monkeypatch.setattr(script.subprocess, "run", lambda command, **_: ran.append(command))
    assert script.main() == 0
    assert ["apt-get", "install", "--yes", "openjdk-17-jre-headless"] in ran
    assert "there is no Java, and it could not be installed" in capsys.readouterr().err


def test_captions_depend_on_the_seed_and_include_unusual_ones() -> None:
    script = load_script("check_caption_scores")
    references, captions = script.made_captions(300, seed=3)
    assert (references, captions) == script.made_captions(300, seed=3)
    assert references.keys() == captions.keys()
    texts = [*captions.values(), *(text for own in references.values() for text in own)]
    assert any(not text.strip() for text in texts)
    assert any(any(ord(character) > 0xFFFF for character in text) for text in texts)
    assert not any(separator in text for text in texts for separator in script.SEPARATORS)
