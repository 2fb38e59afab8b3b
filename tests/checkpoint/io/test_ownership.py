"""Test that an output replaces only an earlier output; any other file is kept or named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.io.ownership import Replaced, files_by_owner, shown
from qkedit.errors import QkeditError, UsageError
from tests.checkpoint.outputs import FILES, read_generation, siblings, tree, write_output, write_to
from tests.checkpoint.written import write_single

FOREIGN = (
    "notes.txt",
    "checkpoint-500/optimizer.pt",
    "chat/mine.txt",  # in a directory that outputs have too
    ".git/HEAD",
    "qkedit-plugins.json",  # attached by the user
    "qkedit.json/notes",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_no_run_wrote_are_named_and_stop_the_next_run(old: Path, name: str) -> None:
    if name.startswith("qkedit.json/"):
        (old / "qkedit.json").unlink()
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("mine")
    before = tree(old.parent)
    with pytest.raises(UsageError) as caught:
        write_to(old)
    top = name.partition("/")[0]
    assert top in caught.value.what
    assert "--force" in caught.value.remedy
    assert tree(old.parent) == before


def test_files_that_appear_during_a_run_stop_it(old: Path) -> None:
    with pytest.raises(UsageError, match=r"did not write \(notes\.txt\)"):
        write_to(old, before_commit=lambda: (old / "notes.txt").write_text("mine"))
    assert (old / "notes.txt").read_text() == "mine"
    assert siblings(old) == ["edited"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_force_replaces_any_directory(target: Path, overwrite: bool) -> None:
    write_single(target, {"a": (1,)})
    (target / "checkpoint-500").mkdir()
    (target / "checkpoint-500" / "optimizer.pt").write_text("mine")
    write_to(target, overwrite=overwrite, force=True)
    assert read_generation(target) == 2
    assert siblings(target) == ["edited"]


def test_a_model_that_no_run_wrote_is_not_replaced(target: Path) -> None:
    write_single(target, {"a": (1,)})
    with pytest.raises(UsageError, match=r"config\.json, model\.safetensors"):
        write_to(target)


def test_links_are_files_of_others(old: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (old / "photos").symlink_to(tmp_path / "photos")
    (old / "dangling").symlink_to("nothing")
    assert files_by_owner(old) == Replaced(ours=tuple(sorted(FILES)), others=("dangling", "photos"))


def test_files_of_desktops_do_not_stop_a_run(old: Path) -> None:
    for name in (".DS_Store", "._qkedit.json", "chat/Thumbs.db"):
        (old / name).write_text("x")
    write_to(old)
    assert read_generation(old) == 2


def test_a_delta_consists_of_its_tensors_and_its_manifest(tmp_path: Path) -> None:
    manifest = {"tool": {"name": "qkedit", "version": "0"}, "files": ["qkedit.json", "config.json"]}
    (tmp_path / "qkedit.json").write_text(json.dumps(manifest))
    (tmp_path / "qkedit-delta.safetensors").write_text("x")
    (tmp_path / "config.json").write_text("{}")
    assert files_by_owner(tmp_path) == Replaced(
        ours=("qkedit-delta.safetensors", "qkedit.json"), others=("config.json",)
    )


@given(
    st.binary(max_size=30)
    | st.sampled_from([b'{"tool": {"name": "qkedit", "version": "0"}, "files": 3}', b"[" * 100_000])
)
def test_a_file_is_ours_only_if_a_valid_manifest_lists_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp() / "manifests"
    directory.mkdir(exist_ok=True)
    (directory / "thesis.tex").write_text("three years")
    (directory / "qkedit.json").write_bytes(content)
    assert "thesis.tex" in files_by_owner(directory).others


def output_with_card(directory: Path, card: str = "ours") -> Path:
    write_output(directory, 1)
    manifest = json.loads((directory / "qkedit.json").read_text())
    sha256 = hashlib.sha256(b"ours").hexdigest()
    manifest |= {"files": [*FILES, "README.md"], "generated": {"README.md": sha256, "../secret": sha256}}
    (directory / "qkedit.json").write_text(json.dumps(manifest))
    (directory / "README.md").write_text(card)
    return directory


def test_an_unchanged_generated_file_is_ours(target: Path) -> None:
    target.mkdir()
    found = files_by_owner(output_with_card(target))
    assert found == Replaced(ours=tuple(sorted({*FILES, "README.md"})))
    (target / "README.md").unlink()  # removing it loses no one's work
    write_to(target)
    assert read_generation(target) == 2


@pytest.mark.parametrize("kind", ["text", "link", "pipe"])
def test_a_changed_generated_file_is_named_and_stops_the_next_run(target: Path, kind: str) -> None:
    target.mkdir()
    output_with_card(target, "mine")
    if kind != "text":
        (target / "README.md").unlink()
        (target / "README.md").symlink_to("chat/template.txt") if kind == "link" else os.mkfifo(target / "README.md")
    assert files_by_owner(target).changed == ("README.md",)
    with pytest.raises(UsageError) as caught:
        write_to(target)
    assert caught.value.what == (
        "holds files that were changed since qkedit wrote them (README.md), so it is not replaced"
    )
    assert "--force" in caught.value.remedy
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write \(notes\.txt\) and files that were changed since"):
        write_to(target)
    write_to(target, force=True)
    assert read_generation(target) == 2


def test_a_pipe_instead_of_a_manifest_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "qkedit.json")
    assert files_by_owner(tmp_path).others == ("qkedit.json",)


def test_an_unreadable_subdirectory_is_an_error(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbidden(path: str) -> os._ScandirIterator[str]:
        if str(path).endswith("/chat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(QkeditError, match="read the directory: permission denied"):
        files_by_owner(old)


def test_many_files_are_abbreviated_to_directories_and_a_count() -> None:
    names = [f"checkpoint-500/{number}" for number in range(9)] + [f"{number}.txt" for number in range(7)]
    assert shown(names) == "checkpoint-500/, 0.txt, 1.txt, 2.txt, 3.txt and 3 more"
