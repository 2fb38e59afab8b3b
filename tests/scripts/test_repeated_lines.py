"""Test the count of repeated lines on small trees."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts.loading import load_script

SIX = [f"step_{number}()" for number in range(6)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("repeated_lines")


def tree(directory: Path, *modules: list[str]) -> Path:
    (directory / "qkedit").mkdir()
    for number, lines in enumerate(modules):
        (directory / "qkedit" / f"{number}.py").write_text("\n".join(lines))
    return directory


def test_blank_lines_comments_and_indentation_are_ignored(script: ModuleType, tmp_path: Path) -> None:
    spread = ["if ready:", *(line for step in SIX for line in (f"    {step}", "", "    # a word", "    ("))]
    (pair,) = script.pairs(tree(tmp_path, ["first()", *SIX], spread))
    assert str(pair) == "  6  qkedit/0.py:2-7  qkedit/1.py:2-22"


def test_a_longer_block_is_one_pair_also_within_one_module(script: ModuleType, tmp_path: Path) -> None:
    longer = [*SIX, "last()", "last_but_not_least()"]
    (pair,) = script.pairs(tree(tmp_path, [*longer, "other()", *longer]))
    assert (pair.length, pair.first_lines, pair.second_lines) == (8, (1, 8), (10, 17))


@pytest.mark.parametrize(
    "modules",
    [
        [SIX[:5], SIX[:5]],
        [["from a import (", *SIX[:2], ")", "import b", *SIX[2:]]] * 2,
        [["same()"] * 11],
        [SIX] * 9,
    ],
    ids=["five lines", "imports", "repetitive lines", "an idiom"],
)
def test_short_blocks_imports_and_idioms_are_no_pairs(
    script: ModuleType, tmp_path: Path, modules: list[list[str]]
) -> None:
    assert script.pairs(tree(tmp_path, *modules)) == []
