"""Test which directories are checkpoints, which are refused, and the treatment of files next to the shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.errors import CheckpointError
from tests.checkpoint.written import opened, write_index, write_shard, write_sharded, write_single

TWO_SHARDS = {
    "model-00001-of-00002.safetensors": {"a": (2, 3), "b": (4,)},
    "model-00002-of-00002.safetensors": {"c": (2, 3)},
}


def refusal(directory: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        opened(directory)
    assert caught.value.remedy, "every error has a remedy"
    return caught.value


def test_a_sharded_checkpoint_is_opened(tmp_path: Path) -> None:
    checkpoint = opened(write_sharded(tmp_path, TWO_SHARDS, {"model_type": "x"}))
    assert list(checkpoint.shards) == list(TWO_SHARDS)
    assert checkpoint.index == "model.safetensors.index.json"
    assert checkpoint.model_type == "x"
    assert set(checkpoint.tensors) == {"a", "b", "c"}
    assert checkpoint.tensors["c"].shard == "model-00002-of-00002.safetensors"
    assert checkpoint.side_files == ("config.json",)
    assert checkpoint.left_out == {}


def test_a_single_file_is_opened(tmp_path: Path) -> None:
    checkpoint = opened(write_single(tmp_path, {"a": (2, 3)}))
    assert checkpoint.index is None
    assert checkpoint.tensors["a"].nbytes == 12


def test_shards_may_be_in_a_subdirectory(tmp_path: Path) -> None:
    checkpoint = opened(write_sharded(tmp_path, {"weights/one.safetensors": {"a": (1,)}}))
    assert checkpoint.tensors["a"].shard == "weights/one.safetensors"


def test_a_single_file_supersedes_the_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    checkpoint = opened(write_single(tmp_path, {"a": (2, 3)}))
    assert set(checkpoint.shards) == {"model.safetensors"}
    assert checkpoint.index is None
    # Engines that prefer the index would otherwise read the unedited weights.
    assert set(checkpoint.left_out) == {"model.safetensors.index.json", *TWO_SHARDS}


def test_an_index_of_a_single_file_is_kept(tmp_path: Path) -> None:
    write_single(tmp_path, {"a": (2, 3)})
    write_index(tmp_path, {"a": "model.safetensors"})
    checkpoint = opened(tmp_path)
    assert checkpoint.index == "model.safetensors.index.json"
    assert checkpoint.left_out == {}


def test_other_files_are_listed_or_left_out(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    side = [
        "LICENSE",
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "modeling_custom.py",
        "qwen.tiktoken",
        "tokenizer.bin",
        "tokenizer.model",
        "training_args.bin",
        "sub/figure.png",
    ]
    stale = [
        "pytorch_model-00001-of-00001.bin",
        "pytorch_model.bin.index.json",
        "model-q4.gguf",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/decoder.onnx",
        "onnx/decoder.onnx_data_1",
        "consolidated.safetensors",
        "consolidated.safetensors.index.json",
        "original/params.json",
        "original/consolidated.00.pth",
        "optimizer.pt",
    ]
    hidden = [".cache/huggingface/download/x.lock", ".git/HEAD", "sub/.ipynb_checkpoints/a.json"]
    for name in side + stale + hidden:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    checkpoint = opened(tmp_path)
    assert set(checkpoint.side_files) == {"config.json", *side}
    assert set(checkpoint.left_out) == set(stale)


def test_other_safetensors_are_listed_or_left_out(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    write_shard(tmp_path / "adapters/adapter_model.safetensors", {"base_model.a.lora_A.weight": (1, 2)})
    write_shard(tmp_path / "model.fp16.safetensors", {"a": (2, 3)})
    checkpoint = opened(tmp_path)
    assert "adapters/adapter_model.safetensors" in checkpoint.side_files
    assert checkpoint.left_out == {"model.fp16.safetensors": "a second copy of the weights"}


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        ("nested", {"text_config": {"marker": 1}}),
        ("nested", {"llm_config": {"marker": 1}}),
        ("nested", {"language_config": {"marker": 1}}),
        ("nested", {"thinker_config": {"text_config": {"marker": 1}}}),
        ("flat", {"marker": 1}),
        ("flat", {"marker": 1, "text_config": None}),
        ("flat", {"marker": 1, "thinker_config": {"audio_config": {}}}),
    ],
)
def test_the_config_of_the_language_model_is_found(tmp_path: Path, keys: str, config: dict[str, Any]) -> None:
    checkpoint = opened(write_single(tmp_path, {"a": (1,)}, config))
    assert checkpoint.text_config["marker"] == 1
    assert (checkpoint.text_config is checkpoint.config) == (keys == "flat")


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    write_single(tmp_path, {"a": (1,)})
    (tmp_path / "config.json").unlink()
    assert "config.json" in str(refusal(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "[" * 100_000, '{"a":' * 100_000])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    write_single(tmp_path, {"a": (1,)})
    (tmp_path / "config.json").write_text(text)
    assert str(refusal(tmp_path)).startswith("config.json")


@pytest.mark.parametrize(
    "index", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in str(refusal(tmp_path))


def test_a_tensor_twice_in_the_index_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    shard = next(iter(TWO_SHARDS))
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{shard}", "a": "{shard}"}}}}')
    assert "'a' occurs twice" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "target",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/outside.safetensors",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        "C:outside.safetensors",
        "./inside.safetensors",
        "sub//inside.safetensors",
        "sub/../inside.safetensors",
        "inside.safetensors\0",
        "inside.bin",
        "",
    ],
)
def test_an_index_that_points_outside_the_shards_is_refused(tmp_path: Path, target: str) -> None:
    directory = write_sharded(tmp_path / "model", TWO_SHARDS)
    write_shard(tmp_path / "outside.safetensors", {"a": (2, 3)})
    write_index(directory, {"a": target})
    assert "tensor a" in str(refusal(directory))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in str(refusal(tmp_path))


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "index" in refusal(tmp_path).remedy


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, {**TWO_SHARDS, "model-00003.safetensors": {"b": (4,)}})
    message = str(refusal(tmp_path))
    assert "tensor b" in message
    assert "model-00001-of-00002.safetensors" in message
    assert "model-00003.safetensors" in message


def test_a_tensor_missing_from_its_shard_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    write_shard(tmp_path / "model-00002-of-00002.safetensors", {"d": (2, 3)})
    assert "tensor c" in str(refusal(tmp_path))


def test_a_tensor_missing_from_the_index_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    write_shard(tmp_path / "model-00002-of-00002.safetensors", {"c": (2, 3), "d": (2, 3)})
    assert "tensor d" in str(refusal(tmp_path))


def test_a_checkpoint_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    error = refusal(tmp_path)
    assert "pytorch_model.bin" in str(error)
    assert "save_pretrained" in error.remedy


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert "no safetensors" in str(refusal(tmp_path))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "model-00001-of-00002.safetensors" in str(refusal(tmp_path))


def test_opening_reads_no_tensor_data(tmp_path: Path) -> None:
    write_sharded(tmp_path, TWO_SHARDS)
    files = opened(tmp_path).files

    class Recording:
        name, revision = files.name, files.revision
        ends: dict[str, int] = {}  # noqa: RUF012 – of this one test

        def passed_over(self) -> dict[str, str]:
            return {}

        def sizes(self) -> dict[str, int]:
            return files.sizes()

        def read(self, file: str, start: int, end: int) -> bytes:
            self.ends[file] = max(end, self.ends.get(file, 0))
            return files.read(file, start, end)

        def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
            raise AssertionError("tensor data is read")

        def local_path(self, file: str) -> Path:
            raise AssertionError("a whole file is wanted")

    recording = Recording()
    checkpoint = open_checkpoint(recording)
    for file, shard in checkpoint.shards.items():
        assert recording.ends[file] <= shard.data_start


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_index_is_accepted_or_refused(weight_map: Any) -> None:
    text = json.dumps({"weight_map": weight_map}).encode()

    class OneIndex:
        name, revision = "x", None

        def passed_over(self) -> dict[str, str]:
            return {}

        def sizes(self) -> dict[str, int]:
            return {"config.json": 2, "model.safetensors.index.json": len(text)}

        def read(self, file: str, start: int, end: int) -> bytes:
            return (b"{}" if file == "config.json" else text)[start:end]

        def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
            raise AssertionError("tensor data is read")

        def local_path(self, file: str) -> Path:
            raise AssertionError("a whole file is wanted")

    with pytest.raises(CheckpointError):
        open_checkpoint(OneIndex())
