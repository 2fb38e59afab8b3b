"""Files of a checkpoint directory: names, sizes, exact ranges, and refusals in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.source import CheckpointFiles, LocalFiles, check_name
from qkedit.errors import CheckpointError

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "some-model"
    (root / "original").mkdir(parents=True)
    (root / "model.safetensors").write_bytes(CONTENT)
    (root / "config.json").write_text("{}")
    (root / "original" / "params.json").write_text("[]")
    return root


def test_every_regular_file_is_listed_with_its_size_in_sorted_order(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    files: CheckpointFiles = LocalFiles(directory)
    assert list(files.sizes().items()) == [
        ("config.json", 2),
        ("model.safetensors", len(CONTENT)),
        ("original/params.json", 2),
    ]


def test_the_name_is_the_directory_s_own_whatever_path_led_there(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    assert LocalFiles(".").name == LocalFiles(directory).name == "some-model"
    assert LocalFiles(directory, name="demo").name == "demo"
    assert LocalFiles(directory).revision is None


def test_snapshot_of_a_hub_cache_is_read_through_its_symlinks(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "abc"
    snapshot = tmp_path / "snapshots" / "1234"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    files = LocalFiles(snapshot)
    assert files.sizes() == {"model.safetensors": len(CONTENT)}
    assert files.read("model.safetensors", 3, 10) == CONTENT[3:10]
    assert files.local_path("model.safetensors") == blob.resolve()


def test_symlinked_directories_are_not_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/secret" not in LocalFiles(directory).sizes()


@given(st.data())
def test_any_range_is_read_exactly(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / "ranges"
    root.mkdir(exist_ok=True)
    (root / "file").write_bytes(CONTENT)
    start = data.draw(st.integers(0, len(CONTENT)))
    end = data.draw(st.integers(start, len(CONTENT)))
    buffer = bytearray(end - start)
    LocalFiles(root).read_into("file", start, buffer)
    assert LocalFiles(root).read("file", start, end) == bytes(buffer) == CONTENT[start:end]


def test_buffers_of_any_item_type_are_filled_to_the_last_byte(directory: Path) -> None:
    buffer = bytearray(64)
    LocalFiles(directory).read_into("model.safetensors", 10, memoryview(buffer).cast("I"))
    assert bytes(buffer) == CONTENT[10:74]


@pytest.mark.parametrize(("start", "end"), [(0, len(CONTENT) + 1), (len(CONTENT), 2 * len(CONTENT)), (-1, 4), (9, 8)])
def test_ranges_outside_the_file_are_refused(directory: Path, start: int, end: int) -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        LocalFiles(directory).read("model.safetensors", start, end)


def test_a_lying_length_is_refused_before_memory_is_taken_for_it(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="ends before byte 9223372036854775807"):
        LocalFiles(directory).read("model.safetensors", 8, 2**63 - 1)


def test_a_file_truncated_after_it_was_listed_is_an_error(directory: Path) -> None:
    files = LocalFiles(directory)
    files.sizes()
    os.truncate(directory / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file ends before byte 200; download it again"):
        files.read_into("model.safetensors", 0, bytearray(200))


def test_a_file_that_vanished_is_an_error(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    files = LocalFiles(directory)
    for use in (
        lambda: files.read("model.safetensors", 0, 1),
        lambda: files.read_into("model.safetensors", 0, bytearray(1)),
        lambda: files.local_path("model.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
            use()


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone: cannot be read \(No such file"):
        LocalFiles(tmp_path / "gone").sizes()


def test_a_broken_symlink_is_an_error(directory: Path) -> None:
    (directory / "tokenizer.json").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: the symlink leads nowhere; download"):
        LocalFiles(directory).sizes()


def test_symlinks_in_a_circle_are_an_error(directory: Path) -> None:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    files = LocalFiles(directory)
    for use in (files.sizes, lambda: files.local_path("a"), lambda: files.read("a", 0, 1)):
        with pytest.raises(CheckpointError, match=r"/[ab]: cannot be read \(.*symbolic links\)"):
            use()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "", ".", "..", "a/.."])
def test_names_that_lead_out_are_refused(directory: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        check_name(name, where="index")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        LocalFiles(directory).read(name, 0, 1)


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000])
def test_names_no_file_can_have_are_an_error(directory: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        LocalFiles(directory).read(name, 0, 1)
    with pytest.raises(CheckpointError, match="cannot be read"):
        LocalFiles(directory).local_path(name)
