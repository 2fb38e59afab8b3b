"""What stands in a file is compared piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.checkpoint.header import TensorEntry
from qkedit.checkpoint.source import LocalFiles
from qkedit.steering import reading
from qkedit.steering.reading import read_bytes, stands_at

CONTENT = bytes(range(100))


@pytest.fixture(params=[1, 7, 60, 1000])
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> TensorEntry:
    """Sixty bytes from the twentieth on, read in pieces of some size."""
    monkeypatch.setattr(reading, "_PIECE", request.param)
    (tmp_path / "file").write_bytes(CONTENT)
    return TensorEntry("tensor", "file", "BF16", (30,), 20, 80)


def test_the_bytes_of_a_tensor_are_read_and_compared(tmp_path: Path, entry: TensorEntry) -> None:
    files, expected = LocalFiles(tmp_path), CONTENT[20:80]
    assert read_bytes(files, entry) == expected
    assert stands_at(files, entry, memoryview(expected))


@pytest.mark.parametrize("place", [0, 6, 7, 59])
def test_one_other_byte_is_found(tmp_path: Path, entry: TensorEntry, place: int) -> None:
    other = bytearray(CONTENT[20:80])
    other[place] ^= 1
    assert not stands_at(LocalFiles(tmp_path), entry, memoryview(other))


@pytest.mark.parametrize("content", [CONTENT[20:79], CONTENT[20:81], b""])
def test_other_lengths_are_other_bytes(tmp_path: Path, entry: TensorEntry, content: bytes) -> None:
    assert not stands_at(LocalFiles(tmp_path), entry, memoryview(content))
