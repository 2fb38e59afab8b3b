"""Test the full directory, the delta, and the full directory made from a delta."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import RecordedBase
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.steering.apply import apply_edits
from qkedit.steering.manifest import read_manifest
from qkedit.steering.steer_options import OutputOptions
from tests.steering.checkpoints import contents, key_name, query_name, same_bits, tensors_of, weights, write

DELTA = "qkedit-delta.safetensors"

COMMIT = "0123456789" * 4


def apply(delta: Path, base: Path | str, out: Path, **options: Any) -> None:
    apply_edits([delta], base=str(base), output=OutputOptions(out, fsync=False, **options))


@pytest.fixture
def delta(base: Path, tmp_path: Path) -> Path:
    steer(base, out=tmp_path / "delta", layers="0-1", k=2, layout="delta", fsync=False)
    return tmp_path / "delta"


def test_a_delta_has_only_the_edited_tensors_and_the_manifest(base: Path, delta: Path, tmp_path: Path) -> None:
    steer(base, out=tmp_path / "full", layers="0-1", k=2, fsync=False)
    full, found = tensors_of(tmp_path / "full"), tensors_of(delta)
    assert set(contents(delta)) == {DELTA, "qkedit.json"}
    assert set(found) == {query_name(0), query_name(1)}
    assert all(same_bits(found[name], full[name]) for name in found)
    of_delta, of_full = read_manifest(delta), read_manifest(tmp_path / "full")
    assert of_delta == replace(of_full, generated={})  # a delta has no card
    card = (tmp_path / "full" / "README.md").read_bytes()
    assert of_full.generated == {"README.md": sha256(card).hexdigest()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_an_applied_delta_equals_the_full_directory(tmp_path: Path, dtype: str, shards: int) -> None:
    base = write(tmp_path / "base", weights(dtype=getattr(torch, dtype), biases=True), shards=shards)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    options: dict[str, Any] = {"layers": "0,2", "k": 3, "retain": 0.2, "heads": "0,3", "fsync": False}
    steer(base, out=tmp_path / "direct", **options)
    steer(base, out=tmp_path / "delta", layout="delta", **options)
    apply(tmp_path / "delta", base, tmp_path / "applied")
    direct, applied = contents(tmp_path / "direct"), contents(tmp_path / "applied")
    assert {"README.md", "README.base.md", "qkedit.json", "config.json"} <= set(direct)
    assert applied == direct
    changed = {
        name
        for name, tensor in tensors_of(base).items()
        if not same_bits(tensor, tensors_of(tmp_path / "direct")[name])
    }
    assert changed == {query_name(0), query_name(2)}


def test_targets_of_links_are_never_overwritten(base: Path, tmp_path: Path) -> None:
    first = shutil.copytree(base, tmp_path / "first")
    steer(first, out=tmp_path / "linked", layers="1", link="symlink", fsync=False)
    before = contents(first)
    with pytest.raises(UsageError, match="inside the input"):
        steer(tmp_path / "linked", out=first, layers="0", overwrite=True, follow_links=True, fsync=False)
    assert contents(first) == before
    steer(tmp_path / "linked", out=tmp_path / "other", layers="0", follow_links=True, fsync=False)


@pytest.mark.parametrize("out", [".", "full", ".."])
def test_a_delta_is_not_overwritten_by_its_own_output(base: Path, delta: Path, out: str) -> None:
    before = contents(delta)
    with pytest.raises(UsageError, match="inside the input"):
        apply(delta, base, (delta / out).resolve(), overwrite=True)
    assert contents(delta) == before


def test_applying_a_delta_as_a_delta_is_refused(base: Path, delta: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a full checkpoint"):
        apply(delta, base, tmp_path / "out", layout="delta")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [query_name(1), query_name(0)])
def test_another_base_is_refused(delta: Path, tmp_path: Path, changed: str) -> None:
    tensors = weights()
    tensors[changed][0, 0] += 1
    other = write(tmp_path / "other", tensors)
    with pytest.raises(QkeditError, match=f"^other: tensor {changed} is not the one that was edited; give the model"):
        apply(delta, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_without_the_tensor_is_refused(delta: Path, tmp_path: Path) -> None:
    with pytest.raises(QkeditError, match=r"q_proj.weight is missing or of another dtype or shape"):
        apply(delta, SMALL_DEMO, tmp_path / "out")
    half = write(tmp_path / "half", weights(dtype=torch.float16))
    with pytest.raises(QkeditError, match=r"q_proj.weight is missing or of another dtype or shape"):
        apply(delta, half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _reshape(path: Path) -> None:
    tensors = {name: tensor.reshape(-1) for name, tensor in tensors_of(path.parent).items()}
    save_file(tensors, path)


def _retype(path: Path) -> None:
    save_file({name: tensor.view(torch.int32) for name, tensor in tensors_of(path.parent).items()}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit of a tensor": lambda path: _flip(path, -1),
    "one bit of the header": lambda path: _flip(path, 12),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "a missing tensor": lambda path: save_file({query_name(0): tensors_of(path.parent)[query_name(0)]}, path),
    "another shape": _reshape,
    "another dtype": _retype,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_delta_is_refused(base: Path, delta: Path, tmp_path: Path, damage: str) -> None:
    DAMAGES[damage](delta / DELTA)
    with pytest.raises(QkeditError) as error:
        apply(delta, base, tmp_path / "out")
    assert DELTA in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]


def test_an_applied_delta_can_replace_an_earlier_output(base: Path, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steer(base, out=out, layers="2", fsync=False)
    with pytest.raises(UsageError, match="already exists"):
        apply(delta, base, out)
    apply(delta, base, out, overwrite=True)
    assert not same_bits(tensors_of(out)[query_name(1)], tensors_of(base)[query_name(1)])
    assert same_bits(tensors_of(out)[query_name(2)], tensors_of(base)[query_name(2)])


def test_a_delta_of_a_steered_directory_has_its_history(base: Path, tmp_path: Path) -> None:
    steer(base, out=tmp_path / "once", layers="0", fsync=False)
    steer(tmp_path / "once", out=tmp_path / "twice", layers="1", fsync=False)
    steer(tmp_path / "once", out=tmp_path / "delta", layers="1", layout="delta", fsync=False)
    apply(tmp_path / "delta", tmp_path / "once", tmp_path / "applied")
    assert contents(tmp_path / "applied") == contents(tmp_path / "twice")


# --- unchanged shards in an output


@pytest.fixture
def untouched(base: Path) -> str:
    """Return the shard without a query of layer 0."""
    holder = next(
        path.name for path in base.glob("*.safetensors") if query_name(0).encode() in path.read_bytes()[:5000]
    )
    return next(path.name for path in sorted(base.glob("*.safetensors")) if path.name != holder)


@pytest.mark.parametrize("link", ["auto", "copy", "hard", "symlink"])
def test_every_link_mode_gives_the_same_model(base: Path, tmp_path: Path, untouched: str, link: str) -> None:
    steer(base, out=tmp_path / "plain", layers="0", link="copy", fsync=False)
    steer(base, out=tmp_path / "linked", layers="0", link=link, fsync=False)
    assert contents(tmp_path / "linked") == contents(tmp_path / "plain")
    shard = tmp_path / "linked" / untouched
    assert shard.is_symlink() == (link == "symlink")
    assert os.path.samefile(shard, base / untouched) == (link in ("hard", "symlink"))
    for path in (tmp_path / "linked").iterdir():
        # save_pretrained would write config.json through a link, and edited shards differ from the base's.
        if path.name != untouched and path.suffix != ".safetensors":
            assert not path.is_symlink()
            assert path.stat().st_nlink == 1


@pytest.mark.parametrize("link", ["auto", "copy", "hard", "symlink"])
def test_a_hub_cache_is_never_changed(tmp_path: Path, link: str) -> None:
    """A snapshot in the cache is a directory of links to blobs."""
    blobs = write(tmp_path / "models--org--name" / "blobs", weights())
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(blobs.iterdir())):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    before = contents(blobs)
    out = tmp_path / "edited"
    report = steer(snapshot, out=out, layers="all", link=link, fsync=False)
    assert report.manifest.base == RecordedBase(model="org/name", revision=COMMIT)
    assert contents(blobs) == before
    assert all(path.is_symlink() for path in snapshot.iterdir())
    for path in out.rglob("*"):
        # A link to the snapshot would break when the cache is pruned.
        assert not path.is_symlink() or os.readlink(path) == os.path.realpath(blobs / Path(os.readlink(path)).name)
    assert not same_bits(tensors_of(out)[query_name(0)], tensors_of(snapshot)[query_name(0)])
    (out / "config.json").write_text("{}")
    assert contents(blobs) == before


def test_stale_formats_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    source = shutil.copytree(base, tmp_path / "source")
    stale = ["consolidated.00.pth", "consolidated.safetensors", "original/params.json", "pytorch_model.bin", "q4.gguf"]
    kept = ["tokenizer.model", "LICENSE", "modeling_own.py", "assets/logo.png", "chat_template.jinja", "vocab.txt"]
    for name in (*stale, *kept):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(name.encode())
    report = steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert sorted(report.left_out) == stale
    found = contents(tmp_path / "edited")
    assert not set(stale) & set(found)
    assert all(found[name] == name.encode() for name in kept)


def test_hidden_directories_are_not_copied(base: Path, tmp_path: Path) -> None:
    source = shutil.copytree(base, tmp_path / "source")
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("ref")
    report = steer(source, out=tmp_path / "edited", layers="0", fsync=False)
    assert not (tmp_path / "edited" / ".git").exists()
    assert report.left_out == {}


def test_keys_are_unchanged(base: Path, tmp_path: Path) -> None:
    steer(base, out=tmp_path / "edited", layers="all", k=3, fsync=False)
    before, after = tensors_of(base), tensors_of(tmp_path / "edited")
    for layer in range(3):
        assert same_bits(before[key_name(layer)], after[key_name(layer)])
        assert not same_bits(before[query_name(layer)], after[query_name(layer)])


def test_a_requested_reflink_is_made_or_refused(base: Path, tmp_path: Path) -> None:
    """If the file system cannot share blocks, `link="reflink"` must not copy silently."""
    steer(base, out=tmp_path / "plain", layers="0", fsync=False)
    try:
        steer(base, out=tmp_path / "shared", layers="0", link="reflink", fsync=False)
    except QkeditError as refusal:
        sentence = str(refusal)
    else:
        assert contents(tmp_path / "shared") == contents(tmp_path / "plain")
        return
    assert "cannot share blocks" in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "plain"]
