#!/usr/bin/env python
"""Write a checkpoint with a published model's structure and size, filled with random numbers, for measurements.

`--shape qwen2-vl-7b` has the tensor names, shapes, shard files and flat `config.json` of
Qwen/Qwen2-VL-7B-Instruct: 16.6 GB of bfloat16 in five shards. `--layers` makes it smaller; `--shape
qwen2-vl-72b` has the width of the largest of that family, `--shape qwen2-vl-tiny` the same names at a size for tests.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --out ./qwen2-vl-7b-shaped
    python scripts/make_checkpoint.py --shape qwen2-vl-72b --layers 4 --out ./four-wide-layers

Values: query and key projections of the language model with their biases are drawn independently, N(0, 0.02²),
since qkedit computes with them. All other weights, which are only copied, repeat one random block of 16 MiB, each from
an offset of its own; drawing them all would take minutes without benefit. Gains of norms are one. The same seed gives
the same bytes. At most a few blocks are in memory at a time.

There is no tokenizer: the checkpoint can be edited, loaded and run on token ids, but not on text.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

BYTES_PER_VALUE = 2  # bfloat16
BLOCK_VALUES = 8 * 1024 * 1024
STANDARD_DEVIATION = 0.02
# Splits the 7B shape into five files of 3.9, 3.9, 3.9, 3.9 and 1.1 GB, like the published ones.
SHARD_BYTES = 4_000_000_000
# The number of rows from Qwen2's first special token to the end of its padded vocabulary.
SPECIAL_TOKEN_ROWS = 421


@dataclass(frozen=True)
class Qwen2VLShape:
    """The sizes that determine every tensor of a Qwen2-VL checkpoint with untied embeddings."""

    layers: int
    hidden: int
    query_heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    vision_heads: int
    rotary_sections: tuple[int, int, int]  # of d_h / 2, for time, height and width

    @property
    def head_size(self) -> int:
        """d_h, the size of a head."""
        return self.hidden // self.query_heads


SHAPES = {
    "qwen2-vl-7b": Qwen2VLShape(
        layers=28,
        hidden=3584,
        query_heads=28,
        key_heads=4,
        intermediate=18944,
        vocabulary=152064,
        vision_layers=32,
        vision_hidden=1280,
        vision_heads=16,
        rotary_sections=(16, 24, 24),
    ),
    "qwen2-vl-72b": Qwen2VLShape(
        layers=80,
        hidden=8192,
        query_heads=64,
        key_heads=8,
        intermediate=29568,
        vocabulary=152064,
        vision_layers=32,
        vision_hidden=1280,
        vision_heads=16,
        rotary_sections=(16, 24, 24),
    ),
    "qwen2-vl-tiny": Qwen2VLShape(
        layers=3,
        hidden=64,
        query_heads=4,
        key_heads=2,
        intermediate=96,
        vocabulary=512,
        vision_layers=2,
        vision_hidden=32,
        vision_heads=2,
        rotary_sections=(2, 3, 3),
    ),
}


@dataclass(frozen=True)
class TensorSpecification:
    """The name and shape of a tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes, as bfloat16."""
        return BYTES_PER_VALUE * self.values


def tensor_specifications(shape: Qwen2VLShape) -> list[TensorSpecification]:
    """Return every tensor under its published name, in the order of the model."""
    hidden, vision = shape.hidden, shape.vision_hidden
    merged = 4 * vision  # 2 × 2 patches become one image token
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14)}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (vision,)

    for layer in range(shape.vision_layers):
        block = f"visual.blocks.{layer}"
        layer_norm(f"{block}.norm1")
        layer_norm(f"{block}.norm2")
        linear(f"{block}.attn.qkv", 3 * vision, vision)
        linear(f"{block}.attn.proj", vision, vision)
        linear(f"{block}.mlp.fc1", 4 * vision, vision)
        linear(f"{block}.mlp.fc2", vision, 4 * vision)
    layer_norm("visual.merger.ln_q")
    linear("visual.merger.mlp.0", merged, merged)
    linear("visual.merger.mlp.2", hidden, merged)

    shapes["model.embed_tokens.weight"] = (shape.vocabulary, hidden)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        linear(f"{block}.self_attn.q_proj", shape.query_heads * shape.head_size, hidden)
        linear(f"{block}.self_attn.k_proj", shape.key_heads * shape.head_size, hidden)
        linear(f"{block}.self_attn.v_proj", shape.key_heads * shape.head_size, hidden)
        linear(f"{block}.self_attn.o_proj", hidden, shape.query_heads * shape.head_size, bias=False)
        linear(f"{block}.mlp.gate_proj", shape.intermediate, hidden, bias=False)
        linear(f"{block}.mlp.up_proj", shape.intermediate, hidden, bias=False)
        linear(f"{block}.mlp.down_proj", hidden, shape.intermediate, bias=False)
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (shape.vocabulary, hidden)
    return [TensorSpecification(name, dimensions) for name, dimensions in shapes.items()]


def split_into_shards(tensors: list[TensorSpecification], shard_bytes: int) -> list[list[TensorSpecification]]:
    """Distribute tensors among shards in order; a tensor that would exceed the limit begins the next shard.

    Within a shard, tensors are sorted by name, as the safetensors library sorts those of one dtype.
    """
    shards: list[list[TensorSpecification]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return [sorted(shard, key=lambda tensor: tensor.name) for shard in shards]


def encode_header(tensors: list[TensorSpecification]) -> bytes:
    """Return the safetensors header of a shard after its length, padded so that the data is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 values to bfloat16, ties to even, and return its bits, uint16; `values` is overwritten.

    NumPy does not have this type, and importing PyTorch for this step would take seconds.
    """
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


class RandomWeights:
    """Generate the values of tensors piece by piece; they depend only on the seed and the tensor's name."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = next(self._drawn(np.random.default_rng(seed), BLOCK_VALUES))

    def pieces(self, tensor: TensorSpecification) -> Iterator[np.ndarray]:
        """Yield the tensor's values in order, as bits of bfloat16, at most a block at a time."""
        name_hash = zlib.crc32(tensor.name.encode())
        if len(tensor.shape) == 1 and tensor.name.endswith(".weight"):  # the gain of a norm
            yield to_bfloat16(np.ones(tensor.values, dtype=np.float32))
        elif ".self_attn.q_proj." in tensor.name or ".self_attn.k_proj." in tensor.name:
            yield from self._drawn(np.random.default_rng([self._seed, name_hash]), tensor.values)
        else:
            yield from self._repeated(name_hash % BLOCK_VALUES, tensor.values)

    def _drawn(self, generator: np.random.Generator, count: int) -> Iterator[np.ndarray]:
        for start in range(0, count, BLOCK_VALUES):
            values = generator.standard_normal(min(BLOCK_VALUES, count - start), dtype=np.float32)
            values *= STANDARD_DEVIATION
            yield to_bfloat16(values)

    def _repeated(self, start: int, count: int) -> Iterator[np.ndarray]:
        while count > 0:
            piece = self._block[start : start + count]
            yield piece
            count -= len(piece)
            start = 0


def configuration(shape: Qwen2VLShape) -> dict[str, Any]:
    """Return `config.json` with the keys of the published one, which is flat."""
    first = shape.vocabulary - SPECIAL_TOKEN_ROWS
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": first,
        "eos_token_id": first + 2,
        "vision_start_token_id": first + 9,
        "vision_end_token_id": first + 10,
        "vision_token_id": first + 11,
        "image_token_id": first + 12,
        "video_token_id": first + 13,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": STANDARD_DEVIATION,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": shape.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": shape.query_heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": shape.vision_layers,
            "embed_dim": shape.vision_hidden,
            "mlp_ratio": 4,
            "num_heads": shape.vision_heads,
            "in_chans": 3,
            "hidden_size": shape.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.rotary_sections)},
        "vocab_size": shape.vocabulary,
    }


def side_files(shape: Qwen2VLShape) -> dict[str, dict[str, Any]]:
    """Return the JSON files next to the weights, by name, which a copy of the checkpoint must include."""
    config = configuration(shape)
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    return {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": bos,
            "pad_token_id": bos,
            "eos_token_id": [eos, bos],
            "do_sample": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": 32768,
            "padding_side": "left",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        },
        "chat_template.json": {
            "chat_template": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
            "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        },
    }


README = """\
---
license: apache-2.0
tags:
- random-weights
---

# Random weights with the structure of a published checkpoint

For measurements only: the names, shapes and shards of a Qwen2-VL checkpoint, filled with random numbers (seed {seed}).

{shape}
"""


def write_checkpoint(out: Path, shape: Qwen2VLShape, *, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the whole checkpoint into `out`, which must not exist or be empty."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    for file, content in side_files(shape).items():
        write_json(out / file, content)
    (out / "README.md").write_text(README.format(seed=seed, shape=asdict(shape)), encoding="utf-8")

    weights = RandomWeights(seed)
    tensors = tensor_specifications(shape)
    shards = split_into_shards(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (out / file).open("wb") as stream:
            stream.write(encode_header(shard))
            for tensor in shard:
                for piece in weights.pieces(tensor):
                    stream.write(piece.data)
        weight_map |= {tensor.name: file for tensor in shard}
        print(f"{file}: {(out / file).stat().st_size / 1e9:.2f} GB", file=sys.stderr)
    # Written last, so that an interrupted output has no index and is not taken for a checkpoint.
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out / "model.safetensors.index.json", index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a random checkpoint with a published model's structure and size."
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-vl-7b", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="new or empty directory")
    parser.add_argument("--layers", type=int, help="number of decoder layers, for a smaller model of the same width")
    parser.add_argument(
        "--shard-bytes", type=int, default=SHARD_BYTES, help="maximum bytes per shard (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the values (default: %(default)s)")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers is not None:
        if options.layers < 1:
            parser.error("--layers must be at least 1")
        shape = replace(shape, layers=options.layers)
    try:
        write_checkpoint(options.out, shape, seed=options.seed, shard_bytes=options.shard_bytes)
    except FileExistsError as error:
        parser.error(f"{error}; give a new directory")


if __name__ == "__main__":
    main()
