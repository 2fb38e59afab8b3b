"""Test that unsuitable targets are refused in one sentence before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.errors import QkeditError, UsageError
from tests.checkpoint.outputs import read_generation, siblings, tree, write_to


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory of unsuitable targets; one is the working directory and one the home directory."""
    for name in ("model", "work/here", "home", "photos", "deep/model", "settings", "blobs"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "model/config.json",
        "work/config.json",
        "home/config.json",
        "photos/cat.jpg",
        "file",
        "deep/config.json",
        "settings/config.json",
        "blobs/weights.safetensors",
        "blobs/config.json",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "same-model").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "work" / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("link", "symbolic link"),
        ("link/", "symbolic link"),
        ("dangling", "symbolic link"),
        ("file", "not a directory"),
        ("file/edited", "not a directory"),
        ("missing/../edited", "leads up from a directory that does not exist"),
        ("dangling/edited", "does not exist"),
        ("loop/edited", "not accessible"),
        ("null\0byte", "null byte"),
        ("work", "working directory"),
        ("work/here", "working directory"),
        ("work/here/.", "working directory"),
        ("work/here/..", "working directory"),
        (".", "working directory"),
        ("home", "home directory"),
        ("/", "mount point"),
        ("photos", "not replaced"),
        ("settings", r"holds files that qkedit did not write \(config\.json\)"),
        ("long" * 100, "too long"),
        ("blobs", "inside the input"),
        ("model", "inside the input"),
        ("model/edited", "inside the input"),
        ("same-model/edited", "inside the input"),
        ("deep", "inside the input"),
    ],
)
def test_unsuitable_targets_are_refused_in_one_sentence(places: Path, target: str, reason: str) -> None:
    before = tree(places)
    path = Path(target) if target in (".", "/") else Path(f"{places}/{target}")
    with pytest.raises(QkeditError, match=reason) as caught:
        write_to(
            path, sources=[places / "same-model", places / "deep" / "model", places / "blobs/weights.safetensors"]
        )
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.remedy
    assert tree(places) == before


def test_a_tilde_means_the_home_directory(places: Path) -> None:
    write_to(Path("~/edited"), overwrite=False)
    assert read_generation(places / "home" / "edited") == 2


def test_an_existing_output_is_not_replaced_without_overwrite(old: Path) -> None:
    with pytest.raises(UsageError, match=r"already exists.*--overwrite"):
        write_to(old, overwrite=False)
    assert read_generation(old) == 1
    assert siblings(old) == ["edited"]


def test_missing_parents_are_made_and_an_empty_target_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "runs" / "one" / "edited", tmp_path / "empty"):
        write_to(target, overwrite=False)
        assert read_generation(target) == 2
        assert siblings(target) == sorted({target.name} | ({"runs"} if target.name == "empty" else set()))


def test_a_failed_run_removes_the_parents_it_made(tmp_path: Path) -> None:
    def fail() -> None:
        assert (tmp_path / "runs" / "one").is_dir()
        raise QkeditError("it failed")

    with pytest.raises(QkeditError, match="it failed"):
        write_to(tmp_path / "runs" / "one" / "edited", before_commit=fail)
    assert list(tmp_path.iterdir()) == []


def test_files_that_appear_in_an_empty_target_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "edited"
    target.mkdir()
    with pytest.raises(UsageError, match="already exists"):
        write_to(target, overwrite=False, before_commit=lambda: (target / "notes.txt").write_text("mine"))
    assert (target / "notes.txt").read_text() == "mine"
    assert siblings(target) == ["edited"]
