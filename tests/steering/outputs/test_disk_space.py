"""Test that a run without enough disk space is refused, and that shared blocks are not counted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qkedit.api.editing import steer
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import QkeditError
from qkedit.steering.apply import apply_edits
from qkedit.steering.outputs import disk_space
from qkedit.steering.steer_options import OutputOptions
from tests.steering.checkpoints import HEAD_SIZE, HEADS, HIDDEN, contents, query_name

EDITED_BYTES = HEADS * HEAD_SIZE * HIDDEN * 4


def room(monkeypatch: pytest.MonkeyPatch, free: int, *, total: int = 1 << 40, shares: bool = False) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free))
    monkeypatch.setattr(disk_space, "can_share_blocks", lambda *_: shares)


def needed(base: Path, output: OutputOptions, *, shared: bool = False) -> int:
    checkpoint = open_checkpoint(LocalFiles(base))
    return disk_space.disk_needed(checkpoint, {"": checkpoint.tensors[query_name(1)]}, output, shared=shared)


def taken(directory: Path) -> int:
    """Return the size of an output without generated files and hard links."""
    return sum(
        path.lstat().st_size
        for path in directory.iterdir()
        if path.name not in ("qkedit.json", "README.md") and path.lstat().st_nlink == 1 and not path.is_symlink()
    )


@pytest.mark.parametrize("link", ["copy", "hard", "symlink"])
def test_the_estimate_equals_the_size_of_the_output(base: Path, tmp_path: Path, link: str) -> None:
    out = tmp_path / "edited"
    steer(base, out=out, layers="1", k=2, link=link, fsync=False)
    assert needed(base, OutputOptions(out, link=link)) == taken(out)


def test_shared_blocks_and_deltas_need_only_the_edited_tensors(base: Path, tmp_path: Path) -> None:
    other_files = sum(len(content) for name, content in contents(base).items() if not name.endswith(".safetensors"))
    assert needed(base, OutputOptions(tmp_path, link="reflink")) == other_files + EDITED_BYTES
    for link in ("auto", "copy", "hard", "symlink"):
        assert needed(base, OutputOptions(tmp_path, link=link), shared=True) == other_files + EDITED_BYTES
    assert needed(base, OutputOptions(tmp_path, layout="delta")) == EDITED_BYTES


@pytest.mark.parametrize("layout", ["full", "delta"])
def test_a_run_without_enough_space_is_refused_before_copying(
    base: Path, tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, needed(base, OutputOptions(tmp_path, layout=layout)) - 1)
    with pytest.raises(QkeditError, match=r"edited: the output takes .* GB and .* GB are free; free some space"):
        steer(base, out=tmp_path / "edited", layers="1", k=2, layout=layout, fsync=False)
    assert os.listdir(tmp_path) == ["base"]


def test_apply_without_enough_space_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steer(base, out=tmp_path / "delta", layers="1", k=2, layout="delta", fsync=False)
    room(monkeypatch, EDITED_BYTES)
    with pytest.raises(QkeditError, match="are free"):
        apply_edits([tmp_path / "delta"], base=str(base), output=OutputOptions(tmp_path / "edited", fsync=False))


@pytest.mark.parametrize(
    "kind", [{"shares": True}, {"total": 0}], ids=["blocks are shared", "a file system without a size"]
)
def test_unneeded_or_unknown_space_is_not_checked(
    base: Path, tmp_path: Path, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = needed(base, OutputOptions(tmp_path), shared=True)
    room(monkeypatch, free if kind.get("shares") else 0, **kind)
    steer(base, out=tmp_path / "edited", layers="1", k=2, fsync=False)


def test_trying_to_share_blocks_leaves_no_files(base: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    disk_space.can_share_blocks(base / "config.json", place)
    assert list(place.iterdir()) == []
