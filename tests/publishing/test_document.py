"""Test the output quoted in docs/publishing.md."""

from __future__ import annotations

import re

import pytest

from tests.cli.command import qkedit
from tests.fake_writable_hub import WritableHub
from tests.paths import ROOT
from tests.publishing.conftest import REPO, Edited


def lines(text: str) -> list[str]:
    """Return the lines of a table without widths and sizes, which depend on versions in the manifest."""
    return [re.sub(r"\s+", " ", re.sub(r"[\d.]+ (bytes|kB)", "N", line)).strip() for line in text.strip().splitlines()]


def test_the_quoted_dry_run_equals_the_printed_one(
    hub: WritableHub, base: dict[str, bytes], edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoted = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "publishing.md").read_text("utf-8"), re.DOTALL)
    result = qkedit("push", edited(), REPO, "--dry-run")
    assert [lines(text) for text in quoted] == [lines(result.stdout)]
