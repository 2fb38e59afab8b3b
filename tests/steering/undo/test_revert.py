"""Test that reverting an output restores the original bytes and files, or changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qkedit
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.hub.files import HubFiles
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.errors import CheckpointError, QkeditError, UsageError, VerificationError
from qkedit.steering.apply import apply_edits
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify
from tests.fake_hub import serve_hub
from tests.steering.checkpoints import contents, query_name, weights, write
from tests.steering.conftest import TinyCheckpoint

ORIGINALS, CARD, BASE_CARD = "qkedit-original.bytes", "README.md", "README.base.md"


def steered(base: Path, out: Path, **options: Any) -> Path:
    qkedit.steer(base, out=out, **{"layers": "1", "k": 2, "fsync": False, **options})
    return out


def applied(base: Path, out: Path, **options: Any) -> Path:
    layers = options.pop("layers", "1")
    with tempfile.TemporaryDirectory() as place:
        delta = steered(base, Path(place) / "delta", layers=layers, layout="delta")
        apply_edits([delta], base=str(base), output=OutputOptions(out, fsync=False, **options))
    return out


BESIDE = st.dictionaries(
    st.sampled_from([CARD, BASE_CARD, "README.base.base.md", "sub/notes.txt", "speech-lora/adapter.json", ".hidden"]),
    st.binary(max_size=40),
)


@settings(max_examples=12, deadline=None)
@given(
    beside=BESIDE,
    shards=st.integers(1, 4),
    make=st.sampled_from([steered, applied]),
    layers=st.sampled_from(["0", "1-2", "all"]),
    link=st.sampled_from(["auto", "copy", "hard", "symlink"]),
    keep=st.booleans(),
    elsewhere=st.booleans(),
)
def test_reverting_restores_every_byte(
    beside: dict[str, bytes], shards: int, make: Any, layers: str, link: str, keep: bool, elsewhere: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = write(place / "base", weights(), shards=shards)
        for file, content in beside.items():
            (base / file).parent.mkdir(exist_ok=True)
            (base / file).write_bytes(content)
        before = contents(base)
        edited = make(base, place / "edited", layers=layers, link=link, keep_original=keep)
        assert (ORIGINALS in contents(edited)) == keep
        assert verify(edited, base=str(base)).mismatches == ()
        after = contents(edited)
        out = place / "restored" if elsewhere else None
        report = qkedit.revert(edited, base=None if keep else base, out=out, fsync=False)
        assert report.bytes_from == (ORIGINALS if keep else "base")
        assert contents(report.out) == before == contents(base)
        assert contents(edited) == (after if elsewhere else before)
        assert sorted(os.listdir(place)) == sorted({"base", "edited", report.out.name})


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("family", ["phi3", "molmo2"])
def test_a_fused_projection_is_restored(tiny: TinyCheckpoint, tmp_path: Path, family: str, keep: bool) -> None:
    base = tiny(family)
    edited = steered(base, tmp_path / "edited", layers="all", keep_original=keep, allow_text_only=True)
    assert contents(edited) != contents(base)
    qkedit.revert(edited, base=None if keep else base, fsync=False)
    assert contents(edited) == contents(base)


def test_only_edited_tensors_are_fetched_from_a_base_on_the_hub(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = steered(base, tmp_path / "edited")
    with serve_hub(base) as hub:
        files = HubFiles.open("org/model", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
        monkeypatch.setattr("qkedit.steering.base.resolve", lambda *_: files)
        assert qkedit.revert(edited, base="org/model", fsync=False).files_compared == 0
        opened = open_checkpoint(HubFiles.open("org/model", endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
        entry = opened.tensors[query_name(1)]
        headers = {shard.file: shard.data_start for shard in opened.shards.values()}
        for file, end in headers.items():
            wanted = [(entry.start, entry.end)] if file == entry.shard else []
            beyond = [found for found in hub.fetched(file) if found is None or found[1] > end]
            assert [(start, stop) for start, stop in beyond] == wanted
    assert contents(edited) == contents(base)


def test_the_demo_is_found_as_the_recorded_base(tmp_path: Path) -> None:
    edited = steered(Path(SMALL_DEMO), tmp_path / "edited")
    assert qkedit.revert(edited, fsync=False).files_compared > 5
    assert contents(edited) == contents(demo_checkpoint(SMALL_DEMO))


def test_several_edits_are_reverted_one_by_one(base: Path, tmp_path: Path) -> None:
    (base / CARD).write_text("# Base\n")
    first = steered(base, tmp_path / "first", keep_original=True)
    (base / CARD).unlink()
    once = contents(first)
    twice = steered(first, tmp_path / "twice", layers="1-2", k=1, keep_original=True)
    by_name = shutil.copytree(twice, tmp_path / "by name")
    assert qkedit.revert(twice, fsync=False).edits_left == 1
    del once[ORIGINALS]  # the second edit left it out and named it
    assert contents(twice) == once
    qkedit.revert(by_name, base=first, fsync=False)
    assert contents(by_name) == once
    qkedit.revert(twice, base=_with(base, CARD, "# Base\n", tmp_path), fsync=False)
    assert contents(twice) == {**contents(base), CARD: b"# Base\n"}


def _with(base: Path, file: str, text: str, place: Path) -> Path:
    changed = shutil.copytree(base, place / "changed")
    (changed / file).write_text(text)
    return changed


def test_files_of_the_user_are_kept(base: Path, tmp_path: Path) -> None:
    edited = steered(base, tmp_path / "edited")
    (edited / "notes.txt").write_text("mine")
    (edited / ".git" / "empty").mkdir(parents=True)
    (edited / "to notes").symlink_to("notes.txt")
    (edited / "qkedit-plugins.json").write_text("{}")
    edited.chmod(0o700)
    number = (edited / "config.json").stat().st_ino
    qkedit.revert(edited, base=base, fsync=False)
    assert os.readlink(edited / "to notes") == "notes.txt"
    assert (edited / ".git" / "empty").is_dir()
    assert edited.stat().st_mode & 0o777 == 0o700
    assert (edited / "config.json").stat().st_ino == number  # moved, not copied
    others = {"notes.txt": b"mine", "to notes": b"mine", "qkedit-plugins.json": b"{}"}
    assert contents(edited) == contents(base) | others


def _changed_tensor(edited: Path) -> None:
    header = next(path for path in sorted(edited.glob("*.safetensors")) if query_name(1).encode() in path.read_bytes())
    raw = bytearray(header.read_bytes())
    length = 8 + int.from_bytes(raw[:8], "little")
    raw[length + json.loads(raw[8:length])[query_name(1)]["data_offsets"][0]] ^= 1
    header.write_bytes(raw)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda edited: (edited / CARD).write_text("mine"), CARD),
        (lambda edited: (edited / BASE_CARD).write_text("mine"), BASE_CARD),
        (_changed_tensor, f"tensor {query_name(1)}"),
    ],
)
def test_changes_of_the_user_are_lost_only_by_force(tmp_path: Path, change: Any, named: str) -> None:
    base = write(tmp_path / "base", weights())
    (base / CARD).write_text("# Base\n")
    edited = steered(base, tmp_path / "edited", keep_original=True)
    change(edited)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="changes made since qkedit wrote it") as error:
        qkedit.revert(edited)
    assert named in str(error.value)
    assert contents(tmp_path) == before
    qkedit.revert(edited, force=True, fsync=False)
    assert contents(edited) == contents(base)


def test_a_file_that_differs_from_the_bases_stops_the_run(base: Path, tmp_path: Path) -> None:
    edited = steered(base, tmp_path / "edited")
    (edited / "tokenizer.json").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(VerificationError, match=r"1 file would differ from the base's: tokenizer\.json"):
        qkedit.revert(edited, base=base)
    assert contents(tmp_path) == before
    assert qkedit.revert(edited, base=base, force=True, fsync=False).differing == ("tokenizer.json",)
    assert contents(edited) == {**contents(base), "tokenizer.json": b"mine"}


def test_outputs_that_cannot_be_reverted_are_refused_in_one_sentence(base: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", weights(seed=1))
    edited = steered(base, tmp_path / "edited")
    kept = steered(base, tmp_path / "kept", keep_original=True)
    damaged = shutil.copytree(kept, tmp_path / "damaged")
    (damaged / ORIGINALS).write_bytes((kept / ORIGINALS).read_bytes()[:-1] + b"!")
    missing = shutil.copytree(kept, tmp_path / "missing")
    (missing / ORIGINALS).unlink()
    twice = steered(edited, tmp_path / "twice", layers="2")
    delta = steered(base, tmp_path / "delta", layout="delta")
    before = contents(tmp_path)
    refused: list[tuple[Path, dict[str, Any], type[QkeditError], str]] = [
        (edited, {}, UsageError, "no original bytes were kept; name the model that was edited with --base"),
        (edited, {"base": other}, CheckpointError, "is not the one that was edited"),
        (edited, {"base": edited}, CheckpointError, "is not the model that was edited"),
        (damaged, {}, CheckpointError, f"{ORIGINALS}: is damaged"),
        (missing, {}, UsageError, f"{ORIGINALS} is missing"),
        (twice, {"base": base}, CheckpointError, "its earlier edits differ from those in the manifest"),
        (delta, {"base": base}, CheckpointError, "is not a full checkpoint"),
        (base, {}, CheckpointError, "there is no readable qkedit.json"),
        (kept, {"out": kept}, UsageError, "inside the input"),
        (kept, {"out": other}, UsageError, "already exists"),
        (kept, {"out": other, "overwrite": True}, UsageError, "holds files that qkedit did not write"),
    ]
    for directory, options, kind, said in refused:
        with pytest.raises(kind) as error:
            qkedit.revert(directory, **options)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_verify_checks_the_original_bytes(base: Path, tmp_path: Path) -> None:
    kept = steered(base, tmp_path / "kept", keep_original=True, verify=True)
    for change, said in ((b"!", "SHA-256 differs from the manifest"), (None, "missing")):
        if change is None:
            (kept / ORIGINALS).unlink()
        else:
            (kept / ORIGINALS).write_bytes(change)
        assert verify(kept, base=str(base)).mismatches == (f"{ORIGINALS}: {said}",)


def test_original_bytes_are_replaced_with_the_output_if_unchanged(base: Path, tmp_path: Path) -> None:
    kept = steered(base, tmp_path / "kept", keep_original=True)
    first = contents(kept)
    assert contents(steered(base, kept, keep_original=True, overwrite=True)) == first
    (kept / ORIGINALS).write_bytes(b"mine")
    with pytest.raises(UsageError, match=ORIGINALS):
        steered(base, kept, overwrite=True)


def test_loaders_do_not_read_the_original_bytes(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(), shards=1)
    kept = steered(base, tmp_path / "kept", keep_original=True)
    assert [path.name for path in kept.rglob("*.safetensors*")] == ["model.safetensors"]
    with pytest.raises(UsageError, match="only a full checkpoint can be reverted"):
        steered(base, tmp_path / "delta", layout="delta", keep_original=True)


def test_files_that_appear_during_the_run_are_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = steered(base, tmp_path / "edited")
    enter = StagedDirectory.__enter__

    def entered(staged: StagedDirectory) -> StagedDirectory:
        (edited / "new.txt").write_text("mine")
        return enter(staged)

    monkeypatch.setattr(StagedDirectory, "__enter__", entered)
    with pytest.raises(CheckpointError, match="added or removed meanwhile"):
        qkedit.revert(edited, base=base)
    assert (edited / "new.txt").read_text() == "mine"
    assert (edited / "qkedit.json").exists()
