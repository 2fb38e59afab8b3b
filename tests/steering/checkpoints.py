"""Write checkpoints by hand, and read directories by the safetensors library instead of qkedit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qkedit.checkpoint.query_modules import QueryModule

LAYERS, HEADS, KEY_HEADS, HEAD_SIZE, HIDDEN = 3, 4, 2, 8, 32
CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "text_config": {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
    },
}
INDEX = "model.safetensors.index.json"
# Every text self-attention layer of the tiny checkpoints, but no layer of a vision tower.
TEXT_QUERY = re.compile(r"^(?!.*(?:vision|visual)).*layers\.(?P<layer>\d+)\.self_attn\.q_proj\.weight$")


def query_name(layer: int) -> str:
    return f"language_model.model.layers.{layer}.self_attn.q_proj.weight"


def key_name(layer: int) -> str:
    return query_name(layer).replace("q_proj", "k_proj")


# The module of layer 1 in a loaded model, for adapters; building the class of transformers takes half a second.
MODULES = {
    query_name(1): QueryModule("layers.1.q_proj", HEADS * HEAD_SIZE, tuple(range(0, HEADS * HEAD_SIZE, HEAD_SIZE)))
}


def weights(*, seed: int = 0, dtype: torch.dtype = torch.float32, biases: bool = False) -> dict[str, Tensor]:
    """Return a grouped-query language model of three layers, with the other parts of a vision-language model."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (0.2 * torch.randn(shape, generator=generator)).to(dtype)

    tensors = {"vision_tower.patch.weight": random(5, 7), "language_model.lm_head.weight": random(11, HIDDEN)}
    for layer in range(LAYERS):
        tensors[query_name(layer)] = random(HEADS * HEAD_SIZE, HIDDEN)
        tensors[key_name(layer)] = random(KEY_HEADS * HEAD_SIZE, HIDDEN)
        tensors[f"language_model.model.layers.{layer}.mlp.up_proj.weight"] = random(13, HIDDEN)
        if biases:
            tensors[query_name(layer).replace("weight", "bias")] = random(HEADS * HEAD_SIZE)
            tensors[key_name(layer).replace("weight", "bias")] = random(KEY_HEADS * HEAD_SIZE)
    return tensors


def write(directory: Path, tensors: Mapping[str, Tensor], *, shards: int = 3) -> Path:
    """Write a checkpoint with its tensors distributed over `shards` shards; one shard has no index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        save_file(part, directory / file, {"format": "pt", "made by": "hand"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": weight_map}))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, including hidden ones."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@contextmanager
def unchanged(directory: Path) -> Iterator[Path]:
    """Yield a hand-written checkpoint, and check at the end that it is unchanged."""
    write(directory, weights())
    before = contents(directory)
    yield directory
    assert contents(directory) == before


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Return every tensor, read by the safetensors library; each name occurs once."""
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no dict
                assert name not in found
                found[name] = file.get_tensor(name)
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether dtype, shape and every bit agree, including negative zeros and NaN."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def changed_bytes(before: Path, after: Path) -> dict[str, set[int]]:
    """Return for each shard the positions at which two directories' files of equal size differ."""
    positions = {}
    for path in sorted(before.glob("*.safetensors")):
        one, other = path.read_bytes(), (after / path.name).read_bytes()
        assert len(one) == len(other)
        positions[path.name] = {at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}
    return positions


def heads_of(tensor: Tensor, count: int) -> list[Any]:
    """Return a projection's heads, float64 numpy `[d_h, D]` each."""
    return list(tensor.double().reshape(count, -1, tensor.shape[-1]).numpy())
