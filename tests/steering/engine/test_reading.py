"""Test that the content of files is read and compared in pieces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from qkedit.checkpoint.contents import DELTA_FILE
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError
from qkedit.steering.engine import reading
from qkedit.steering.engine.reading import (
    piece_size,
    pieces,
    read_bytes,
    same_bytes,
    stands_at,
    tensor_pieces,
    tensors_of,
)

CONTENT = bytes(range(100))


@pytest.fixture(params=[1, 7, 60, 1000])
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> TensorEntry:
    """Read sixty bytes from the twentieth on, in pieces of some size."""
    monkeypatch.setattr(reading, "_PIECE", request.param)
    (tmp_path / "file").write_bytes(CONTENT)
    return TensorEntry("tensor", "file", "BF16", (30,), 20, 80)


def test_the_bytes_of_a_tensor_are_read_and_compared(tmp_path: Path, entry: TensorEntry) -> None:
    files, expected = LocalFiles(tmp_path), CONTENT[20:80]
    assert read_bytes(files, entry) == expected
    assert stands_at(files, entry, memoryview(expected))


@pytest.mark.parametrize("place", [0, 6, 7, 59])
def test_one_different_byte_is_found(tmp_path: Path, entry: TensorEntry, place: int) -> None:
    other = bytearray(CONTENT[20:80])
    other[place] ^= 1
    assert not stands_at(LocalFiles(tmp_path), entry, memoryview(other))


@pytest.mark.parametrize("content", [CONTENT[20:79], CONTENT[20:81], b""])
def test_another_length_is_a_difference(tmp_path: Path, entry: TensorEntry, content: bytes) -> None:
    assert not stands_at(LocalFiles(tmp_path), entry, memoryview(content))


def test_all_pieces_use_the_same_memory(tmp_path: Path, entry: TensorEntry) -> None:
    files = LocalFiles(tmp_path)
    found = [(id(piece), bytes(piece)) for piece in tensor_pieces(files, entry, reading._PIECE)]
    assert b"".join(content for _, content in found) == CONTENT[20:80]
    assert len({memory for memory, _ in found}) == 1
    assert {len(content) for _, content in found[:-1]} <= {reading._PIECE}
    assert list(pieces(files, "file", 20, 20, reading._PIECE)) == []


def test_streams_of_pieces_are_compared_up_to_the_first_difference(tmp_path: Path, entry: TensorEntry) -> None:
    files, size = LocalFiles(tmp_path), reading._PIECE
    counts: list[int] = []
    assert same_bytes(tensor_pieces(files, entry, size), pieces(files, "file", 20, 80, size), counts.append)
    assert sum(counts) == 60
    counts.clear()
    assert not same_bytes(tensor_pieces(files, entry, size), pieces(files, "file", 19, 79, size), counts.append)
    assert counts == [min(size, 60)]


def test_reading_from_a_hub_uses_fewer_and_larger_pieces(tmp_path: Path) -> None:
    here, hub = LocalFiles(tmp_path), Mock(spec=HubFiles)
    assert piece_size(here) == piece_size(here, here) == reading._PIECE
    assert piece_size(hub) == piece_size(here, hub) == piece_size(hub, here) > reading._PIECE


def test_the_tensors_of_a_file_are_listed(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    with pytest.raises(CheckpointError, match="there is no") as caught:
        tensors_of(files, DELTA_FILE)
    assert (caught.value.where, caught.value.remedy) == (
        tmp_path.name,
        "name a directory written with --layout delta or lora",
    )
    save_file({"weight": torch.ones(2, 3)}, tmp_path / DELTA_FILE)
    (found,) = tensors_of(files, DELTA_FILE).values()
    assert (found.name, found.dtype, found.shape) == ("weight", "F32", (2, 3))
    assert read_bytes(files, found) == torch.ones(2, 3).numpy().tobytes()


def test_reading_does_not_import_torch() -> None:
    code = "import sys, qkedit.steering.engine.reading; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
