"""Test that generated checkpoints have a published model's names, shapes and sizes, and load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.scripts.loading import load_script

# The metadata of the published Qwen/Qwen2-VL-7B-Instruct's index.
PUBLISHED_TOTAL_SIZE = 16_582_751_232


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return load_script("make_checkpoint")


@pytest.fixture(scope="module")
def tiny(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tiny"
    maker.write_checkpoint(out, maker.SHAPES["qwen2-vl-tiny"], shard_bytes=200_000)
    return out


def read_tensors(directory: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Return every tensor with its shard's name, read by the safetensors library."""
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 – not a dictionary
                assert name not in tensors
                tensors[name] = (shard.name, file.get_tensor(name))
    return tensors


def module_name(published: str) -> str:
    """Return transformers' name of a tensor of the published file."""
    for prefix, replacement in (("visual.", "model.visual."), ("model.", "model.language_model.")):
        if published.startswith(prefix):
            return replacement + published.removeprefix(prefix)
    return published


@pytest.mark.parametrize("name", ["qwen2-vl-7b", "qwen2-vl-tiny"])
def test_names_and_shapes_equal_those_of_the_model_class(maker: ModuleType, name: str) -> None:
    shape = replace(maker.SHAPES[name], layers=2)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**maker.configuration(shape)))
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    made = {module_name(tensor.name): tensor.shape for tensor in maker.tensor_specifications(shape)}
    assert made == expected


def test_the_full_size_equals_the_published_one_in_five_shards(maker: ModuleType) -> None:
    tensors = maker.tensor_specifications(maker.SHAPES["qwen2-vl-7b"])
    shards = maker.split_into_shards(tensors, maker.SHARD_BYTES)
    sizes = [sum(tensor.nbytes for tensor in shard) for shard in shards]
    assert sum(sizes) == PUBLISHED_TOTAL_SIZE
    assert [round(size / 1e9, 1) for size in sizes] == [3.9, 3.9, 3.9, 3.9, 1.1]
    assert sorted(tensor.name for shard in shards for tensor in shard) == sorted(t.name for t in tensors)


def test_a_tensor_larger_than_a_shard_has_a_separate_one(maker: ModuleType) -> None:
    tensors = [maker.TensorSpecification(name, (rows,)) for name, rows in (("a", 1), ("b", 9), ("c", 2), ("d", 1))]
    shards = maker.split_into_shards(tensors, shard_bytes=6)
    assert [[tensor.name for tensor in shard] for shard in shards] == [["a"], ["b"], ["c", "d"]]


def test_the_files_are_valid_and_agree_with_the_index(maker: ModuleType, tiny: Path) -> None:
    tensors = read_tensors(tiny)
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: shard for name, (shard, _) in tensors.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in tensors.values())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    specified = {t.name: t.shape for t in maker.tensor_specifications(maker.SHAPES["qwen2-vl-tiny"])}
    assert {name: tuple(tensor.shape) for name, (_, tensor) in tensors.items()} == specified
    assert {tensor.dtype for _, tensor in tensors.values()} == {torch.bfloat16}


def test_transformers_loads_it_without_missing_or_unexpected_keys(tiny: Path) -> None:
    model, information = AutoModelForImageTextToText.from_pretrained(tiny, output_loading_info=True)
    assert not any(information.values()), information
    assert AutoConfig.from_pretrained(tiny).image_token_id < model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        logits = model(input_ids=torch.arange(6).unsqueeze(0)).logits
    assert logits.isfinite().all()


def test_bytes_depend_on_the_seed_only(maker: ModuleType, tiny: Path, tmp_path: Path) -> None:
    shape = maker.SHAPES["qwen2-vl-tiny"]
    maker.write_checkpoint(tmp_path / "same", shape, shard_bytes=200_000)
    maker.write_checkpoint(tmp_path / "other", shape, shard_bytes=200_000, seed=1)
    for file in tiny.iterdir():
        assert file.read_bytes() == (tmp_path / "same" / file.name).read_bytes(), file.name
    for shard in tiny.glob("*.safetensors"):
        assert shard.read_bytes() != (tmp_path / "other" / shard.name).read_bytes()


def test_query_and_key_projections_are_independent_draws(tiny: Path) -> None:
    tensors = {name: tensor.float() for name, (_, tensor) in read_tensors(tiny).items()}
    drawn = [
        tensors[f"model.layers.{layer}.self_attn.{kind}_proj.weight"].flatten()[: 32 * 64]
        for layer in range(3)
        for kind in ("q", "k")
    ]
    correlation = torch.corrcoef(torch.stack(drawn))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.15  # 1 / sqrt(2048) is one standard deviation
    for values in drawn:
        assert values.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(bool((tensors[name] == 1).all()) for name in tensors if name.endswith("layernorm.weight"))


def test_pieces_of_values_are_at_most_a_block(maker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "BLOCK_VALUES", 1000)
    weights = maker.RandomWeights(seed=0)
    for tensor in maker.tensor_specifications(maker.SHAPES["qwen2-vl-tiny"]):
        sizes = [len(piece) for piece in weights.pieces(tensor)]
        assert sum(sizes) == tensor.values
        assert max(sizes) <= 1000


@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_rounding_to_bfloat16_equals_pytorchs(maker: ModuleType, numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(maker.to_bfloat16(values), expected)


def test_a_directory_with_files_is_refused(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["make_checkpoint", "--shape", "qwen2-vl-tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        maker.main()
    assert stop.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
