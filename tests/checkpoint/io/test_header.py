"""Test the header parser against the safetensors library on valid files, and on damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from qkedit.checkpoint.io.header import MAX_HEADER_BYTES, ShardHeader, read_header
from qkedit.errors import CheckpointError

NUMPY_DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def parse(data: bytes) -> ShardHeader:
    return read_header(lambda start, end: data[start:end], len(data), "model.safetensors")


def shard(header: Any, buffer: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + buffer


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
    max_size=6,
)
valid_files = st.builds(
    lambda specs, metadata: save(
        {name: np.ones(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in specs.items()}, metadata
    ),
    tensors,
    st.none()
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.just("x"), min_size=1),
)


@given(valid_files)
def test_valid_headers_equal_those_of_the_safetensors_library(data: bytes) -> None:
    header = parse(data)
    theirs = dict(deserialize(data))
    assert header.tensors.keys() == theirs.keys()
    for name, ours in header.tensors.items():
        assert (ours.dtype, list(ours.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert data[ours.start : ours.end] == bytes(theirs[name]["data"])
        assert ours.nbytes == len(theirs[name]["data"])


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_header_is_an_error_or_accepted_by_the_library_too(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(valid_files))
    for _ in range(draw.draw(st.integers(1, 3))):
        kind = draw.draw(st.sampled_from(["replace", "delete", "insert", "truncate"]))
        at = draw.draw(st.integers(0, len(data) - 1)) if data else 0
        byte = draw.draw(st.sampled_from(b'{}[]",:0123456789-.eE \\tfun\x00\xff') | st.integers(0, 255))
        if kind == "replace" and data:
            data[at] = byte
        elif kind == "insert":
            data.insert(at, byte)
        elif kind == "delete" and data:
            del data[at]
        else:
            del data[at:]
    try:
        header = parse(bytes(data))
    except CheckpointError:
        return
    theirs = dict(deserialize(bytes(data)))
    assert {name: list(ours.shape) for name, ours in header.tensors.items()} == {
        name: value["shape"] for name, value in theirs.items()
    }


@settings(max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=8))
def test_any_header_is_valid_or_a_checkpoint_error(text: bytes, buffer: bytes) -> None:
    try:
        parse(shard(text, buffer))
    except CheckpointError as error:
        str(error).encode()  # the sentence can be printed


INVALID: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "too few"),
    "seven bytes": (b"\x00" * 7, "too few"),
    "header beyond the file": ((100).to_bytes(8, "little") + b"{}", "only 10"),
    "giant header": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "more than"),
    "largest header length": (b"\xff" * 8, "more than"),
    "not an object": (shard(b"[]"), "does not begin"),
    "leading space": (shard(b" {}"), "does not begin"),
    "broken JSON": (shard(b"{"), "not valid JSON"),
    "not UTF-8": (shard(b'{"\xff": 1}'), "not valid JSON"),
    "nested too deeply": (shard(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "number of ten thousand digits": (shard(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "lone surrogate": (shard(b'{"\\ud800": 1}'), "not valid Unicode"),
    "repeated tensor": (
        shard(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "'a' occurs twice",
    ),
    "repeated field": (
        shard(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "twice",
    ),
    "entry is not an object": (shard({"a": [1]}), "tensor a: the header entry is not an object"),
    "entry without offsets": (shard({"a": {"dtype": "U8", "shape": [1]}}), "no 'data_offsets'"),
    "unknown dtype": (shard({"a": entry("F128")}, b"x" * 4), "tensor a: unknown dtype 'F128'"),
    "dtype is not a string": (shard({"a": entry(["U8"])}, b"x" * 4), "unknown dtype"),
    "negative size": (shard({"a": entry(shape=[-4])}, b"x" * 4), "not a list of sizes"),
    "two negative sizes": (shard({"a": entry(shape=[-2, -2])}, b"x" * 4), "not a list of sizes"),
    "float size": (shard({"a": entry(shape=[4.0])}, b"x" * 4), "not a list of sizes"),
    "boolean size": (shard({"a": entry(shape=[True], offsets=[0, 1])}, b"x"), "not a list of sizes"),
    "size beyond 64 bits": (shard({"a": entry(shape=[2**64, 0], offsets=[0, 0])}), "is not a list of sizes"),
    "negative offset": (shard({"a": entry(offsets=[-4, 0])}, b"x" * 4), "not a pair of positions"),
    "float offset": (shard({"a": entry(offsets=[0, 4.0])}, b"x" * 4), "not a pair of positions"),
    "boolean offset": (shard({"a": entry(shape=[1], offsets=[False, 1])}, b"x"), "not a pair of positions"),
    "three offsets": (shard({"a": entry(offsets=[0, 4, 4])}, b"x" * 4), "not a pair of positions"),
    "offsets reversed": (shard({"a": entry(offsets=[4, 0])}, b"x" * 4), "cover -4 bytes"),
    "range too short": (
        shard({"a": entry(offsets=[0, 3])}, b"x" * 3),
        "cover 3 bytes, but U8 of shape [4] takes 4",
    ),
    "nested value": (shard({"a": entry() | {"more": [[1]]}}, b"x" * 4), "a nested value under the foreign key 'more'"),
    "half a byte": (shard({"a": entry("F4", [3], [0, 2])}, b"xx"), "takes 1.5"),
    "a hundred dimensions": (
        shard({"a": entry(shape=[1] * 65, offsets=[0, 1])}, b"x"),
        "65 dimensions, more than the limit of 64",
    ),
    "a product beyond float64": (
        shard({"a": entry(shape=[2**64 - 1] * 64, offsets=[0, 4])}, b"x" * 4),
        f"takes {str((2**64 - 1) ** 64)[:20]}… (1234 digits)",
    ),
    "a product beyond float64 of half bytes": (
        shard({"a": entry("F4", [2**63 + 1] * 63, [0, 4])}, b"x" * 4),
        ".5",
    ),
    "a product of zero": (shard({"a": entry(shape=[2**64 - 1] * 63 + [0])}, b"x" * 4), "takes 0"),
    "a number beyond float64": (shard(b'{"a": {"dtype": "U8", "shape": [1e999], "data_offsets": [0, 1]}}'), "float64"),
    "NaN": (shard(b'{"a": NaN}'), "not valid JSON"),
    "beyond the file": (shard({"a": entry()}, b"x" * 3), "tensor a: its bytes end at"),
    "far beyond the file": (shard({"a": entry(shape=[2**50], offsets=[0, 2**50])}), "but the file has only"),
    "overlap": (
        shard({"a": entry(), "b": entry(offsets=[2, 6])}, b"x" * 6),
        "tensor b: its bytes overlap those of 'a'",
    ),
    "same range": (shard({"a": entry(), "b": entry()}, b"x" * 4), "overlap"),
    "hole": (shard({"a": entry(), "b": entry(offsets=[5, 9])}, b"x" * 9), "tensor b: 1 bytes before it"),
    "hole at the start": (shard({"a": entry(offsets=[1, 5])}, b"x" * 5), "belong to no tensor"),
    "surplus bytes": (shard({"a": entry()}, b"x" * 5), "the last 1 bytes belong to no tensor"),
    "metadata is not a map": (shard({"__metadata__": ["pt"]}), "not a map of strings"),
    "metadata of numbers": (shard({"__metadata__": {"step": 3}}), "not a map of strings"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_headers_are_refused(kind: str) -> None:
    data, message = INVALID[kind]
    with pytest.raises(CheckpointError) as caught:
        parse(data)
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.safetensors")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=[1] * 100_000, offsets=[0, 1])},
        {"a": entry(dtype="U" * 100_000)},
        {"a": entry(shape=["1" * 100_000])},
        {"a" * 100_000: entry(offsets=[0, 3])},
        {"a" * 100_000: entry(), "b": entry(offsets=[1, 5])},
        {"a": entry(offsets=list(range(100_000)))},
    ],
)
def test_a_long_invalid_value_is_quoted_in_short(header: dict[str, object]) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(shard(header, b"xxxxx"))
    assert len(str(caught.value)) < 1000


def test_the_library_also_refuses_overlaps_and_holes() -> None:
    # The checks of overlaps and holes are part of the format.
    for kind in ("overlap", "hole", "hole at the start", "surplus bytes", "beyond the file"):
        with pytest.raises(SafetensorError):
            deserialize(INVALID[kind][0])


def test_a_short_read_is_an_error() -> None:
    data = shard({"a": entry()}, b"x" * 4)
    with pytest.raises(CheckpointError, match="could be read"):
        read_header(lambda start, end: data[start : end - 1], len(data), "model.safetensors")


def test_only_the_header_is_read(tmp_path: Path) -> None:
    data = save({"a": np.zeros((64, 64), "f4")}, {"format": "pt"})
    ranges: list[tuple[int, int]] = []

    def read(start: int, end: int) -> bytes:
        ranges.append((start, end))
        return data[start:end]

    header = read_header(read, len(data), "model.safetensors")
    assert max(end for _, end in ranges) == header.data_start
    assert header.metadata == {"format": "pt"}


def test_trailing_spaces_and_padding_are_valid() -> None:
    header = parse(shard(json.dumps({"a": entry()}).encode() + b"     ", b"x" * 4))
    assert header.tensors["a"].nbytes == 4
