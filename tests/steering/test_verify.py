"""Test that every way to tamper with an output is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qkedit.api.editing import steer
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.demo import DEMOS, SMALL_DEMO
from qkedit.errors import CheckpointError
from qkedit.steering.verify import Verification, verify
from tests.steering.checkpoints import INDEX, key_name, query_name, tensors_of, weights, write

PLANNED, OTHER = query_name(1), key_name(2)


@dataclass(frozen=True)
class Output:
    """Return an edited directory, the delta of the same edit, and their base."""

    directory: Path
    delta: Path
    base: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Output:
    place = tmp_path_factory.mktemp("made")
    base = write(place / "base", weights())
    (base / "README.md").write_text("# Base\n")
    for layout in ("full", "delta"):
        steer(base, out=place / layout, layers="0-1", k=2, layout=layout, fsync=False)  # type: ignore[arg-type]
    return Output(place / "full", place / "delta", base)


@pytest.fixture
def output(made: Output, tmp_path: Path) -> Output:
    """Return a copy to tamper with."""
    copies = {name: shutil.copytree(getattr(made, name), tmp_path / name) for name in ("directory", "delta", "base")}
    return Output(**copies)


def shard_of(directory: Path, name: str) -> Path:
    return directory / json.loads((directory / INDEX).read_text())["weight_map"][name]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_in_tensor(directory: Path, name: str, shard: Path | None = None) -> None:
    path = shard or shard_of(directory, name)
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    start, end = json.loads(raw[8:data])[name]["data_offsets"]
    flip(path, data + (start + end) // 2)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], metadata: Any = None) -> None:
    with safe_open(path, "pt") as file:
        tensors, kept = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata or kept)


def rewrite_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


def names(result: Verification) -> str:
    return "\n".join(result.mismatches)


def test_an_unchanged_output_has_no_mismatch(output: Output) -> None:
    result = verify(output.directory, base=str(output.base))
    assert result.mismatches == ()
    assert (result.layout, result.tensors_checked, result.compared_with_base) == ("full", 2, "base")
    assert result.tensors_compared == len(weights()) - 2
    assert result.files_compared == len(["config.json", "tokenizer.json", "README.md", INDEX])


def test_an_unchanged_delta_has_no_mismatch(output: Output) -> None:
    result = verify(output.delta, base=str(output.base))
    assert result.mismatches == ()
    assert (result.layout, result.tensors_checked) == ("delta", 2)


def test_without_a_base_only_edited_tensors_are_checked(output: Output) -> None:
    result = verify(output.directory)
    assert result.mismatches == ()
    assert result.compared_with_base is None
    assert (result.tensors_compared, result.files_compared) == (0, 0)
    flip_in_tensor(output.directory, OTHER)
    assert verify(output.directory).mismatches == ()
    flip_in_tensor(output.directory, PLANNED)
    assert verify(output.directory).mismatches == (f"{PLANNED}: SHA-256 differs from the manifest",)


@pytest.mark.parametrize("name", DEMOS)
def test_the_demo_is_found_as_the_recorded_base(name: str, tmp_path: Path) -> None:
    steer(name, out=tmp_path / "edited", layers="2", fsync=False)
    result = verify(tmp_path / "edited")
    assert result.mismatches == ()
    assert result.compared_with_base == name
    (tmp_path / "edited" / "config.json").write_text("{}")
    assert verify(tmp_path / "edited").mismatches == ("config.json: differs from the base",)


@pytest.mark.parametrize("name", DEMOS)
def test_a_directory_named_demo_is_not_the_demo(name: str, output: Output, tmp_path: Path) -> None:
    base = output.base.rename(tmp_path / name)
    steer(base, out=tmp_path / "edited", layers="2", fsync=False)
    result = verify(tmp_path / "edited")
    assert (result.mismatches, result.compared_with_base) == ((), None)


def _move_a_tensor(directory: Path) -> None:
    """Move a tensor to another shard, with its bytes and a matching index."""
    source, target = shard_of(directory, OTHER), shard_of(directory, PLANNED)
    assert source != target
    moved = tensors_of(directory)[OTHER]
    rewrite(source, lambda tensors: tensors.pop(OTHER))
    rewrite(target, lambda tensors: tensors.update({OTHER: moved}))
    rewrite_index(directory, lambda index: index["weight_map"].update({OTHER: target.name}))


def _drop_a_tensor(directory: Path) -> None:
    rewrite(shard_of(directory, OTHER), lambda tensors: tensors.pop(OTHER))
    rewrite_index(directory, lambda index: index["weight_map"].pop(OTHER))


def _add_a_tensor(directory: Path, *, indexed: bool) -> None:
    shard = shard_of(directory, OTHER)
    rewrite(shard, lambda tensors: tensors.update({"extra.weight": torch.ones(2)}))
    if indexed:
        rewrite_index(directory, lambda index: index["weight_map"].update({"extra.weight": shard.name}))


def _double_a_tensor(directory: Path) -> None:
    shard = shard_of(directory, PLANNED)
    rewrite(shard, lambda tensors: tensors.update({OTHER: tensors_of(directory)[OTHER]}))


def _retype(directory: Path) -> None:
    rewrite(shard_of(directory, OTHER), lambda tensors: tensors.update({OTHER: tensors[OTHER].view(torch.int32)}))


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of an edited tensor": (lambda at: flip_in_tensor(at, PLANNED), f"{PLANNED}: SHA-256 differs"),
    "a bit of another tensor": (lambda at: flip_in_tensor(at, OTHER), f"{OTHER}: differs from the base"),
    "the dtype of another tensor": (_retype, f"{OTHER}: dtype or shape differs"),
    "a bit of a side file": (lambda at: flip(at / "tokenizer.json", 3), "tokenizer.json: differs from the base"),
    "a longer side file": (
        lambda at: (at / "tokenizer.json").write_text((at / "tokenizer.json").read_text() + "\n"),
        "tokenizer.json: differs from the base",
    ),
    "a missing side file": (lambda at: (at / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "the base's card": (lambda at: (at / "README.base.md").write_text("mine"), "README.base.md: differs"),
    "an added code file": (lambda at: (at / "modeling.py").write_text("evil()"), "modeling.py: not in the base"),
    "an added file of weights": (lambda at: (at / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin: not in"),
    "a missing shard": (lambda at: shard_of(at, OTHER).unlink(), f"{OTHER}: missing"),
    "the missing shard of an edited tensor": (lambda at: shard_of(at, PLANNED).unlink(), f"{PLANNED}: missing"),
    "a truncated shard": (lambda at: (p := shard_of(at, PLANNED)).write_bytes(p.read_bytes()[:-2]), "model-0000"),
    "a missing tensor": (_drop_a_tensor, f"{OTHER}: missing"),
    "an additional tensor": (lambda at: _add_a_tensor(at, indexed=True), "extra.weight: not in the base"),
    "an additional tensor that is not in the index": (
        lambda at: _add_a_tensor(at, indexed=False),
        "tensor extra.weight: ",
    ),
    "a repeated tensor": (_double_a_tensor, f"tensor {OTHER}: occurs twice"),
    "a moved tensor": (_move_a_tensor, "header differs from the base"),
    "an index entry": (
        lambda at: rewrite_index(at, lambda index: index["weight_map"].pop(OTHER)),
        f"tensor {OTHER}: ",
    ),
    "the index's metadata": (lambda at: rewrite_index(at, lambda index: index.pop("metadata")), f"{INDEX}: differs"),
    "no index": (lambda at: (at / INDEX).unlink(), INDEX),
    "a shard's metadata": (
        lambda at: rewrite(shard_of(at, OTHER), lambda _: None, {"format": "np"}),
        "header differs from the base",
    ),
    "no config": (lambda at: (at / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_every_change_is_found_and_named(output: Output, tampering: str) -> None:
    tamper, expected = TAMPERINGS[tampering]
    tamper(output.directory)
    assert expected in names(verify(output.directory, base=str(output.base)))


def test_all_tensors_of_a_missing_shard_are_named(output: Output) -> None:
    shard = shard_of(output.directory, PLANNED)
    with safe_open(shard, "pt") as file:
        gone = set(file.keys())
    shard.unlink()
    assert {name for name in weights() if f"{name}: missing" in names(verify(output.directory))} == {PLANNED} | (
        gone & {query_name(0)}
    )
    found = names(verify(output.directory, base=str(output.base)))
    assert {name for name in weights() if f"{name}: missing" in found} == gone


def test_another_base_is_a_mismatch(output: Output, tmp_path: Path) -> None:
    tensors = weights()
    tensors[PLANNED][0, 0] += 1
    other = write(tmp_path / "other", tensors)
    for directory in (output.directory, output.delta):
        assert f"base: {PLANNED}: SHA-256 differs" in names(verify(directory, base=str(other)))
    found = names(verify(output.directory, base=SMALL_DEMO))
    assert f"base: {PLANNED}: dtype or shape differs" in found or f"base: {PLANNED}: missing" in found


def test_the_remedy_depends_on_a_wrong_base_or_a_broken_output(output: Output) -> None:
    wrong_base = verify(output.directory, base=str(output.directory))
    assert wrong_base.mismatches
    assert wrong_base.remedy.startswith("name the base that was edited")
    flip_in_tensor(output.directory, PLANNED)
    assert verify(output.directory, base=str(output.base)).remedy.startswith("write the output again")


def test_a_changed_manifest_is_a_mismatch(output: Output) -> None:
    path = output.directory / "qkedit.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"] = manifest["tensors"][:1]  # as if only layer 0 had been edited
    path.write_text(json.dumps(manifest))
    assert f"{PLANNED}: differs from the base" in names(verify(output.directory, base=str(output.base)))


DELTA_TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda file: flip_in_tensor(file.parent, PLANNED, file), f"{PLANNED}: SHA-256 differs"),
    "a missing tensor": (lambda file: rewrite(file, lambda tensors: tensors.pop(PLANNED)), f"{PLANNED}: missing"),
    "an additional tensor": (
        lambda file: rewrite(file, lambda tensors: tensors.update({"extra": torch.ones(2)})),
        "extra: not in the manifest",
    ),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-4]), "qkedit-delta.safetensors"),
}


@pytest.mark.parametrize("tampering", DELTA_TAMPERINGS)
def test_every_change_of_a_delta_is_found(output: Output, tampering: str) -> None:
    tamper, expected = DELTA_TAMPERINGS[tampering]
    tamper(output.delta / "qkedit-delta.safetensors")
    assert expected in names(verify(output.delta))


def test_a_delta_without_its_tensors_is_a_mismatch(output: Output) -> None:
    (output.delta / "qkedit-delta.safetensors").unlink()
    found = verify(output.delta, base=str(output.base))
    assert found.layout == "delta"
    assert found.mismatches == (
        "delta: there is no qkedit-delta.safetensors",
        *(f"{query_name(layer)}: missing, as qkedit-delta.safetensors is" for layer in (0, 1)),
    )


def test_a_dangling_link_is_a_mismatch(output: Output) -> None:
    (output.directory / "adapter.json").symlink_to(output.directory / "gone")
    mismatches = verify(output.directory, base=str(output.base)).mismatches
    assert mismatches == ("adapter.json: not in the base",)


def test_a_delta_in_a_full_directory_hides_no_change(output: Output) -> None:
    for file in output.delta.iterdir():
        shutil.copy(file, output.directory)
    flip_in_tensor(output.directory, OTHER)
    found = names(verify(output.directory, base=str(output.base)))
    assert f"{OTHER}: differs from the base" in found
    assert "qkedit-delta.safetensors: not in the base" in found


def test_a_directory_without_a_manifest_cannot_be_verified(output: Output, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no readable qkedit\.json"):
        verify(output.base)
    with pytest.raises(CheckpointError, match=r"no readable qkedit\.json"):
        verify(tmp_path / "nothing")


def test_bytes_read_are_counted(output: Output) -> None:
    counts: list[int] = []
    verify(output.directory, on_bytes=counts.append)
    assert sum(counts) == sum(tensors_of(output.directory)[query_name(layer)].nbytes for layer in (0, 1))


def test_all_bytes_compared_with_the_base_are_counted(output: Output) -> None:
    counts: list[int] = []
    assert verify(output.directory, base=str(output.base), on_bytes=counts.append).mismatches == ()
    tensors = {name: tensor.nbytes for name, tensor in tensors_of(output.base).items()}
    hashed_twice = sum(tensors[query_name(layer)] for layer in (0, 1))
    files = [path.stat().st_size for path in output.base.iterdir() if path.suffix != ".safetensors"]
    assert sum(counts) == sum(tensors.values()) + hashed_twice + sum(files)


def test_large_side_files_of_equal_size_are_compared_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited, piece = write(tmp_path / "base", weights()), tmp_path / "edited", 1 << 20
    (base / "adapter.txt").write_bytes(bytes(2 * piece + 5))
    steer(base, out=edited, layers="0", fsync=False)
    read: list[int] = []
    original = LocalFiles.read_into

    def watched(files: LocalFiles, file: str, start: int, buffer: bytearray | memoryview) -> None:
        read.extend([len(buffer)] if file == "adapter.txt" else [])
        original(files, file, start, buffer)

    monkeypatch.setattr(LocalFiles, "read_into", watched)
    assert verify(edited, base=str(base)).mismatches == ()
    assert read == [piece, piece, piece, piece, 5, 5]
    flip(edited / "adapter.txt", 2 * piece + 3)
    assert verify(edited, base=str(base)).mismatches == ("adapter.txt: differs from the base",)
    read.clear()
    (edited / "adapter.txt").write_bytes(bytes(2 * piece + 4))
    assert verify(edited, base=str(base)).mismatches == ("adapter.txt: differs from the base",)
    assert read == []
