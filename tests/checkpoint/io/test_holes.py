"""Test that sparse files stay sparse when they are copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.io.copying import LinkMode, copy_file
from qkedit.checkpoint.io.holes import stretches

BLOCK = 1 << 16


def sparse(path: Path, blocks: list[bool], tail: int = 0) -> bytes:
    """Write a sparse file of blocks with and without data, and return its content."""
    content = b"".join((b"x" if full else b"\0") * BLOCK for full in blocks) + b"\0" * tail
    with path.open("wb") as file:
        for number, full in enumerate(blocks):
            if full:
                file.seek(number * BLOCK)
                file.write(b"x" * BLOCK)
        file.truncate(len(content))
    return content


@given(st.lists(st.booleans(), max_size=6), st.integers(0, 99), st.data())
def test_stretches_cover_a_range_in_order_and_holes_are_zeros(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bool], tail: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "sparse"
    content = sparse(path, blocks, tail)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content) + 10))
    position = start
    descriptor = os.open(path, os.O_RDONLY)
    for first, last, is_hole in stretches(descriptor, start, end):
        assert first == position < last
        assert not is_hole or content[first:last] == bytes(last - first)
        position = last
    os.close(descriptor)
    assert position == end


def test_holes_are_not_written(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        file.write(b"x" * BLOCK)
        file.truncate(8 << 30)
    if source.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("the file system has no holes")
    counted = []
    copy_file(source, copy, 8 << 30, LinkMode.COPY, counted.append)
    assert copy.stat().st_size == sum(counted) == 8 << 30
    assert copy.stat().st_blocks * 512 <= 1 << 20
    with copy.open("rb") as file:
        assert file.read(2 * BLOCK) == b"x" * BLOCK + bytes(BLOCK)
