"""Test that files which another program writes or replaces are found, and that unchanged bytes are accepted."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.io.stamps import FileStamp
from qkedit.errors import CheckpointError

LONG_AGO = 1_000_000_000_000_000_000


def overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"other")


def replace_keeping_the_time(file: Path) -> None:
    fresh = file.with_name("fresh")
    fresh.write_bytes(b"other bytes")
    os.utime(fresh, ns=(LONG_AGO, LONG_AGO))
    os.replace(fresh, file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written to": overwrite,
    "appended to": lambda file: file.write_bytes(file.read_bytes() + b"!"),
    "truncated": lambda file: os.truncate(file, 5),
    "replaced by a file of equal size and time": replace_keeping_the_time,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"eleven byte")
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_named(file: Path, change: str, linked: bool) -> None:
    name = "link" if linked else file.name
    if linked:
        (file.parent / "link").symlink_to(file)
    files = LocalFiles(file.parent)
    files.size(name)
    CHANGES[change](file)
    with pytest.raises(CheckpointError, match=rf"^{name}: was changed while it was read; run again when"):
        files.check_unchanged()


def test_a_removed_file_is_named(file: Path) -> None:
    files = LocalFiles(file.parent)
    files.sizes()
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        files.check_unchanged()


def test_reading_linking_and_permissions_are_no_change(file: Path) -> None:
    files = LocalFiles(file.parent)
    files.sizes()
    files.read(file.name, 0, 11)
    os.link(file, file.with_name("linked"))
    file.chmod(0o400)
    files.check_unchanged()


def test_a_linked_directory_may_change(file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    os.utime(elsewhere, ns=(LONG_AGO, LONG_AGO))
    (file.parent / "link").symlink_to(elsewhere)
    files = LocalFiles(file.parent)
    assert files.passed_over() == {"link": "a link to a directory"}
    (elsewhere / "new").touch()
    files.check_unchanged()


def test_changes_since_the_first_listing_are_found(file: Path) -> None:
    files = LocalFiles(file.parent)
    files.sizes()
    overwrite(file)
    files.sizes()
    with pytest.raises(CheckpointError, match="was changed"):
        files.check_unchanged()


def test_a_new_inode_number_is_not_a_change(file: Path) -> None:
    stamp = FileStamp.of(file.stat())
    assert stamp.is_still(replace(stamp, identity=(1, 2)))
    assert not stamp.is_still(replace(stamp, identity=(1, 2), status_changed=stamp.status_changed + 1))
