"""Test files of a base that must not be copied: private files behind links, and names that the output needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qkedit import steer
from qkedit.errors import CheckpointError
from qkedit.steering.verify import verify
from tests.steering.checkpoints import contents


@pytest.fixture
def source(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "source")


def test_a_private_file_behind_a_link_is_copied_only_on_request(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("private")
    (source / "notes.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=f"notes.txt leads to {secret}") as caught:
        steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert "--follow-links" in caught.value.remedy
    assert not (tmp_path / "edited").exists()
    steer(source, out=tmp_path / "delta", layers="0", layout="delta", fsync=False)  # a delta has no side files
    steer(source, out=tmp_path / "edited", layers="0", follow_links=True, fsync=False)
    assert contents(tmp_path / "edited")["notes.txt"] == b"private"


def test_weights_behind_links_are_refused_for_a_delta(source: Path, tmp_path: Path) -> None:
    for shard in source.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    with pytest.raises(CheckpointError, match="links to files outside"):
        steer(source, out=tmp_path / "delta", layers="0", layout="delta", fsync=False)


def test_links_inside_the_model_are_followed(source: Path, tmp_path: Path) -> None:
    (source / "real").mkdir()
    (source / "config.json").rename(source / "real" / "config.json")
    (source / "config.json").symlink_to("real/config.json")
    steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert not (tmp_path / "edited" / "config.json").is_symlink()


@pytest.mark.parametrize("name", ["README.md", "qkedit.json"])
def test_a_directory_with_a_name_that_the_output_needs_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).mkdir()
    (source / name / "file").write_text("x")
    with pytest.raises(CheckpointError, match=f"has a directory {name}"):
        steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert not (tmp_path / "edited").exists()


def test_an_adapter_next_to_the_weights_is_left_out_with_a_warning(source: Path, tmp_path: Path) -> None:
    (source / "adapter_config.json").write_text("{}")
    report = steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert not (tmp_path / "edited" / "adapter_config.json").exists()
    assert "adapter_config.json" in report.left_out
    assert any("merge_and_unload" in warning for warning in report.warnings)


def test_changes_by_tools_are_no_mismatch(source: Path, tmp_path: Path) -> None:
    (source / ".gitattributes").write_text("*.bin filter=lfs\n")
    edited = tmp_path / "edited"
    steer(source, out=edited, layers="0", fsync=False)
    (edited / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (edited / ".gitignore").write_text("x")
    (edited / "._config.json").write_text("x")
    assert verify(edited, base=str(source)).mismatches == ()
    (edited / "modeling.py").write_text("x")
    assert verify(edited, base=str(source)).mismatches == ("modeling.py: not in the base",)
