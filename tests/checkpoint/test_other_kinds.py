"""Test directories of other formats: each is named, and files that no loader reads are ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qkedit.checkpoint.hub.snapshot import model_directory
from qkedit.errors import CheckpointError
from tests.checkpoint.written import opened, write_shard, write_sharded, write_single

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4976698672\n"

KINDS: dict[str, tuple[dict[str, str], str, str]] = {
    "a delta": ({"qkedit.json": "{}", "qkedit-delta.safetensors": "x"}, "is a delta", "qkedit apply"),
    "an adapter": ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, "an adapter", "merge_and_unload"),
    "an adapter with a config": (
        {"config.json": "{}", "adapter_config.json": "{}", "adapter_model.safetensors": "x"},
        "is an adapter",
        "merge_and_unload",
    ),
    "GGUF": ({"model-q4.gguf": "x", "config.json": "{}"}, r"are GGUF \(model-q4\.gguf\)", "docs/deploying.md"),
    "a root of VILA": (
        {"config.json": "{}", "llm/config.json": "{}", "llm/model.safetensors": "x", "vision_tower/config.json": "{}"},
        r"\(llm, vision_tower\), as VILA",
        "--allow-text-only",
    ),
    "Mistral's format": (
        {"params.json": "{}", "consolidated.safetensors": "x", "tekken.json": "{}"},
        r"only in Mistral's own format \(consolidated\.safetensors\)",
        "config.json",
    ),
}


def place(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_directories_of_other_formats_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    files, said, remedy = KINDS[kind]
    directory = place(tmp_path, files)
    for use in (opened, lambda path: model_directory(str(path))):  # to edit it, and to run it
        with pytest.raises(CheckpointError, match=said) as caught:
            use(directory)
        assert remedy in caught.value.remedy


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_instead_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    write_single(tmp_path, {"a": (1,)})
    (tmp_path / name).write_text(POINTER)
    for use in (opened, lambda path: model_directory(str(path))):  # to edit it, and to run it
        with pytest.raises(CheckpointError, match=f"{name}: is a git-lfs pointer") as caught:
            use(tmp_path)
        assert "git lfs pull" in caught.value.remedy


def test_a_git_lfs_pointer_instead_of_a_shard_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"one.safetensors": {"a": (1,)}, "two.safetensors": {"b": (1,)}})
    (tmp_path / "two.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"two\.safetensors: is a git-lfs pointer"):
        opened(tmp_path)


def test_foreign_files_are_listed_or_left_out(tmp_path: Path) -> None:
    write_single(tmp_path, {"a": (1,)})
    kept = ["config.json", "figure.png", "training_args.bin", "speech-lora/adapter_config.json"]
    left_out = {
        "__0_0.distcp": "weights in another format",
        "rust_model.ot": "weights in another format",
        "model.pdparams": "weights in another format",
        "model.ckpt-1000.data-00000-of-00001": "weights in another format",
        "model.ckpt.meta": "weights in another format",
        "model.llamafile": "weights in another format",
        "model.safetensors.bak": "a backup",
        "config.json.orig": "a backup",
        "model.safetensors.index.fp16.json": "an index of other weights",
        "pytorch_model.bin.index.fp16.json": "an index of other weights",
        "model-00002-of-00002.safetensors.incomplete": "an unfinished download",
        "checkpoint-500/config.json": "a training checkpoint",
        "checkpoint-500/optimizer.pt": "a training checkpoint",
        "stray.safetensors": "not a readable safetensors file, and not one of the shards",
        "empty.safetensors": "not a readable safetensors file, and not one of the shards",
        "adapter_config.json": "an adapter, which loaders would apply to the edited weights",
        "adapter_model.safetensors": "an adapter, which loaders would apply to the edited weights",
    }
    litter = ["._model.safetensors", "._config.json", ".DS_Store", "Thumbs.db"]
    place(tmp_path, {name: "{}" for name in (*kept, *left_out, *litter)})
    (tmp_path / "figure.png").write_text(POINTER)
    (tmp_path / "empty.safetensors").write_text("")
    (tmp_path / "stray.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    write_shard(tmp_path / "speech-lora" / "adapter_model.safetensors", {"a.lora_A": (1,)})
    checkpoint = opened(tmp_path)
    assert checkpoint.left_out == left_out | {"dangling.txt": "a broken link"}
    assert set(checkpoint.side_files) == {*kept, "speech-lora/adapter_model.safetensors"}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "one.safetensors"])
def test_a_broken_link_is_named_as_the_reason(tmp_path: Path, missing: str) -> None:
    if missing == "one.safetensors":
        write_sharded(tmp_path, {"one.safetensors": {"a": (1,)}})
    else:
        write_single(tmp_path, {"a": (1,)})
    (tmp_path / missing).unlink()
    (tmp_path / missing).symlink_to("blobs/gone")
    with pytest.raises(CheckpointError, match=f"{missing} .*a broken link"):
        opened(tmp_path)


def test_an_unfinished_download_is_refused(tmp_path: Path) -> None:
    place(tmp_path, {"config.json": json.dumps({}), "model.safetensors.incomplete": "x"})
    with pytest.raises(CheckpointError, match="an unfinished download"):
        opened(tmp_path)
