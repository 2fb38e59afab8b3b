"""Test files that grow tensor by tensor, as read by the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from qkedit.checkpoint.io.header import read_header
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.io.tensor_file import growing
from qkedit.errors import QkeditError

FILE = "grown.safetensors"
# Escaped characters are longer in JSON than in memory.
NAMES = st.text('aé"\\\n\U0001f600.', min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(shapes=st.dictionaries(NAMES, st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=5))
def test_a_growing_file_holds_the_appended_tensors(
    shapes: dict[str, tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("grown")
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    places = {}
    with growing(directory, FILE, shapes) as file:
        for name, array in arrays.items():
            places[name] = file.append(name, "F32", array.shape, memoryview(array).cast("B"))
    found = load_file(directory / FILE)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    files = LocalFiles(directory)
    header = read_header(lambda start, end: files.read(FILE, start, end), files.size(FILE), FILE)
    assert header.tensors == places
    assert header.data_start % 8 == 0


def test_the_reserved_space_suffices_for_the_largest_numbers(tmp_path: Path) -> None:
    """The space reserved for an unknown tensor suffices for one of a petabyte."""
    largest = {"dtype": "F8_E4M3FNUZ", "shape": [2**40, 2**40], "data_offsets": [2**53, 2**53]}
    with growing(tmp_path, FILE, ["name"]) as file:
        assert file._header_bytes >= len(json.dumps({"__metadata__": {"format": "pt"}, "name": largest}))


def test_an_unfinished_file_is_not_readable(tmp_path: Path) -> None:
    def unfinished() -> None:
        with growing(tmp_path, FILE, ["name"]) as file:
            file.append("name", "U8", (4,), memoryview(b"1234"))
            raise KeyError

    with pytest.raises(KeyError):
        unfinished()
    with pytest.raises(Exception, match="header"):
        load_file(tmp_path / FILE)


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("mine")
    with pytest.raises(QkeditError, match=FILE), growing(tmp_path, FILE, ["name"]):
        pass
    assert (tmp_path / FILE).read_text() == "mine"
