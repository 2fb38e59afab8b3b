"""Test that files are written whole, and never replace a device or a pipe."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qkedit.checkpoint.io.whole_file import check_writable, write_whole
from qkedit.errors import UsageError


def write(file: Path) -> None:
    write_whole(file, b"new")


def check(file: Path) -> None:
    check_writable(file.parent, file)


@pytest.mark.parametrize("name", ["pipe", "link to a pipe"])
@pytest.mark.parametrize("refusing", [write, check])
def test_a_pipe_is_not_replaced(tmp_path: Path, name: str, refusing: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    with pytest.raises(UsageError, match="is a device or a pipe, not a file; name a file"):
        refusing(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link to a pipe", "pipe"]


@pytest.mark.parametrize("name", ["null", "full", "stdout", "stderr"])
def test_devices_are_refused_before_any_work(name: str) -> None:
    with pytest.raises(UsageError, match=f"/dev/{name}: is a device or a pipe"):
        check_writable(Path("/dev"), Path("/dev", name))


def test_files_and_dangling_links_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("old", "dangling", "new"):
        check(tmp_path / name)
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"
    assert not (tmp_path / "nowhere").exists()
