"""Test the files of a checkpoint directory: names, sizes, exact ranges, and errors in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles, check_name
from qkedit.demo import SMALL_DEMO
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


def test_the_name_does_not_depend_on_the_path_to_the_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    assert LocalFiles(".").name == LocalFiles(directory).name == "some-model"
    assert LocalFiles(directory, name=SMALL_DEMO).name == SMALL_DEMO
    assert LocalFiles(directory).revision is None


def test_symlinks_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    commit = "0123456789" * 4
    blob = tmp_path / "models--org--name" / "blobs" / "abc"
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    files = LocalFiles(snapshot)
    assert (files.name, files.revision) == ("org/name", commit)
    assert files.leads_out("model.safetensors") is None
    assert files.sizes() == {"model.safetensors": len(CONTENT)}
    assert files.read("model.safetensors", 3, 10) == CONTENT[3:10]
    assert files.local_path("model.safetensors") == blob.resolve()


def test_symlinked_directories_are_not_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/secret" not in LocalFiles(directory).sizes()
    assert LocalFiles(directory).passed_over() == {"link": "a link to a directory"}


@pytest.mark.parametrize("kind", ["outside", "inside", "blobs outside a cache", "blobs that are a link"])
def test_links_out_of_the_directory_are_found(directory: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "private" / "secret"
    secret.parent.mkdir()
    secret.write_text("x")
    if kind == "inside":
        (directory / "original" / "link").symlink_to("../config.json")
        assert LocalFiles(directory).leads_out("original/link") is None
        return
    if kind == "outside":
        model = directory
        (model / "notes.txt").symlink_to(secret)
    else:  # an archive may have the layout of a cache
        root = tmp_path / ("models--a--b" if kind == "blobs that are a link" else "archive")
        model = root / "snapshots" / ("a" * 40)
        model.mkdir(parents=True)
        (root / "blobs").symlink_to(secret.parent)
        (model / "notes.txt").symlink_to("../../blobs/secret")
    assert LocalFiles(model).leads_out("notes.txt") == secret.resolve()
    assert LocalFiles(model, follows_links=True).leads_out("notes.txt") is None


def test_unreadable_subdirectories_are_skipped(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "lost+found").mkdir()
    scandir = os.scandir

    def forbidden(path: str | Path) -> os._ScandirIterator[str]:
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    closed = {str(directory / "lost+found")}
    assert LocalFiles(directory).passed_over() == {"lost+found": "an unreadable directory"}
    closed = {str(directory)}
    with pytest.raises(CheckpointError, match="Permission denied"):
        LocalFiles(directory).sizes()


def test_directories_of_tools_are_ignored(directory: Path) -> None:
    for name in (".git", ".cache"):
        (directory / name).mkdir()
        (directory / name / "file").write_text("x")
        (directory / name / "dangling").symlink_to("nowhere")
    files = LocalFiles(directory)
    assert list(files.sizes()) == ["config.json", "model.safetensors", "original/params.json"]
    assert files.passed_over() == {}


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


def test_buffers_of_any_item_type_are_filled(directory: Path) -> None:
    buffer = bytearray(64)
    LocalFiles(directory).read_into("model.safetensors", 10, memoryview(buffer).cast("I"))
    assert bytes(buffer) == CONTENT[10:74]


@pytest.mark.parametrize(("start", "end"), [(0, len(CONTENT) + 1), (len(CONTENT), 2 * len(CONTENT)), (-1, 4), (9, 8)])
def test_ranges_outside_the_file_are_refused(directory: Path, start: int, end: int) -> None:
    with pytest.raises(CheckpointError, match="truncated"):
        LocalFiles(directory).read("model.safetensors", start, end)


def test_a_wrong_length_is_refused_before_memory_is_allocated(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="ends before byte 9223372036854775807"):
        LocalFiles(directory).read("model.safetensors", 8, 2**63 - 1)


def test_a_file_truncated_after_the_listing_is_an_error(directory: Path) -> None:
    files = LocalFiles(directory)
    files.sizes()
    os.truncate(directory / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file ends before byte 200; download it again"):
        files.read_into("model.safetensors", 0, bytearray(200))


def test_a_file_removed_after_the_listing_is_an_error(directory: Path) -> None:
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


def test_a_broken_symlink_is_skipped_and_reading_it_is_an_error(directory: Path) -> None:
    (directory / "tokenizer.json").symlink_to("nowhere")
    files = LocalFiles(directory)
    assert files.passed_over() == {"tokenizer.json": "a broken link"}
    assert "tokenizer.json" not in files.sizes()
    with pytest.raises(CheckpointError, match=r"tokenizer.json: the symlink is broken; download"):
        files.read("tokenizer.json", 0, 1)


def test_circular_symlinks_are_skipped_and_reading_them_is_an_error(directory: Path) -> None:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    files = LocalFiles(directory)
    assert set(files.passed_over()) == {"a", "b"}
    for use in (lambda: files.local_path("a"), lambda: files.read("a", 0, 1)):
        with pytest.raises(CheckpointError, match=r"/[ab]: cannot be read \(.*symbolic links\)"):
            use()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../b", "", ".", "..", "a/.."])
def test_names_outside_the_directory_are_refused(directory: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="points outside the checkpoint"):
        check_name(name, where="index")
    with pytest.raises(CheckpointError, match="points outside the checkpoint"):
        LocalFiles(directory).read(name, 0, 1)


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000])
def test_invalid_file_names_are_an_error(directory: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        LocalFiles(directory).read(name, 0, 1)
    with pytest.raises(CheckpointError, match="cannot be read"):
        LocalFiles(directory).local_path(name)
