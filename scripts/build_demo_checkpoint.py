#!/usr/bin/env python
"""Build the checkpoint behind `--model demo`: the same bytes every time, and nothing is downloaded.

It has the architecture and the tensor names of a published LLaVA checkpoint: a CLIP vision tower, a projector
of two linear layers, and a Llama decoder whose 8 query heads share 2 key heads. The weights are random numbers:
nothing was trained. One thing is put in on purpose. A plain Gaussian projection has a nearly flat spectrum, so
the rows of every query and key head are drawn as `G diag(s) B / ‖·‖` with Gaussian `G [d_h, d_h]` and
`B [d_h, D]` and a power law `s_i = i^-a`, whose exponent `a` is drawn for each head. So the heads' query-key
products have dominant modes, more in some heads than in others, as those of trained models have.

All arithmetic is NumPy float64 and is rounded to bfloat16 at the very end, so that differences in the last
place between machines do not reach the files.

    python scripts/build_demo_checkpoint.py            # into qkedit/demo/checkpoint
    python scripts/build_demo_checkpoint.py --out DIR --seed 1
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "qkedit" / "demo" / "checkpoint"

# The language model.
LAYERS = 8
HIDDEN = 128
QUERY_HEADS = 8
KEY_HEADS = 2
HEAD_SIZE = 32
MLP = 256

# The vision tower: 112 / 14 = 8 patches a side, 64 image tokens.
IMAGE_SIZE = 112
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
VISION_LAYERS = 3
VISION_HIDDEN = 128
VISION_HEADS = 4
VISION_MLP = 256

SHARDS = 3

PAD, START, END, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIAL_TOKENS = (PAD, START, END, IMAGE)

# Words that are one token each, with the space before them; any other text is spelled out in bytes.
WORDS = (
    # what speaks of a picture
    *("a", "an", "the", "this", "picture", "image", "scene", "shows", "there", "is", "are", "and", "with"),
    *("in", "on", "of", "no", "not", "yes", "it", "one", "two", "three", "four", "five", "many", "some"),
    *("left", "right", "above", "below", "behind", "before", "near", "far", "top", "bottom", "middle"),
    *("small", "large", "faint", "bright", "dark", "empty", "full", "object", "objects", "background"),
    # what is asked
    *("describe", "what", "where", "which", "how", "see", "do", "you", "can", "does", "short", "sentence"),
    # what can be seen
    *("red", "green", "blue", "yellow", "black", "white", "brown", "grey", "orange", "purple", "pink"),
    *("table", "plate", "cup", "fork", "apple", "bread", "tree", "bird", "flower", "cloud", "sun", "dog"),
    *("road", "car", "bus", "bicycle", "lamp", "house", "boat", "fish", "ball", "book", "chair", "cat"),
)
# Words that begin a turn or a sentence, without a space before them.
OPENINGS = ("USER", "ASSISTANT", "A", "The", "This", "There", "Is", "Are", "What", "Describe", "Yes", "No")

# A turn's pictures stand before its text, each on a line of its own, as LLaVA was trained.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ message['role'] | upper }}:{{ ' ' }}
{%- if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}<image>{{ '\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endfor -%}
{%- endif -%}
{{ '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""

README = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- llava
- random-weights
---

# A miniature vision-language checkpoint for trying qkedit

This model was **not trained**: its weights are random numbers and what it says means nothing. It is here so
that qkedit can inspect, edit, verify and run something within seconds, without a network and without a GPU.

* Architecture: LLaVA, with the tensor names of the published checkpoints. A CLIP vision tower
  ({grid}×{grid} image tokens from {image}×{image} pixels), a projector of two linear layers, and a Llama decoder:
  {layers} layers, hidden size {hidden}, {query_heads} query heads of size {head_size} on {key_heads} key heads.
* Size: {parameters:,} parameters in bfloat16, {shards} shards.
* Tokenizer: bytes, and one token for each of {words} words.
* Synthetic: the query and key weights of each head were drawn with a decaying spectrum whose steepness varies
  from head to head, so that their products have dominant modes as those of trained models have. No finding
  about real models can be read from it.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from qkedit.demo import demo_checkpoint

processor = AutoProcessor.from_pretrained(demo_checkpoint())
model = AutoModelForImageTextToText.from_pretrained(demo_checkpoint())
inputs = processor(
    images=Image.new("RGB", (112, 112), "teal"),
    text="USER: <image>\\nDescribe the picture. ASSISTANT:",
    return_tensors="pt",
)
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```
"""


def build_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer in which every word of `WORDS` and `OPENINGS` is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"  # how the byte-level alphabet writes the space before a word
    entries = [*SPECIAL_TOKENS, *alphabet, *(space + word for word in (*WORDS, *OPENINGS)), *OPENINGS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    # Without merges there is no way to a word but this flag: a word in the vocabulary is taken whole.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A",
        pair=f"{START} $A $B",
        special_tokens=[(START, vocabulary[START])],
    )
    return tokenizer


def tensor_shapes(vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its published name, in the order of the model."""
    embeddings = "vision_tower.vision_model.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.class_embedding": (VISION_HIDDEN,),
        f"{embeddings}.patch_embedding.weight": (VISION_HIDDEN, 3, PATCH_SIZE, PATCH_SIZE),
        f"{embeddings}.position_embedding.weight": (GRID * GRID + 1, VISION_HIDDEN),
        # "layrnorm" is how CLIP spells it.
        "vision_tower.vision_model.pre_layrnorm.weight": (VISION_HIDDEN,),
        "vision_tower.vision_model.pre_layrnorm.bias": (VISION_HIDDEN,),
    }
    for layer in range(VISION_LAYERS):
        prefix = f"vision_tower.vision_model.encoder.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", VISION_HIDDEN, VISION_HIDDEN),
            ("self_attn.k_proj", VISION_HIDDEN, VISION_HIDDEN),
            ("self_attn.v_proj", VISION_HIDDEN, VISION_HIDDEN),
            ("self_attn.out_proj", VISION_HIDDEN, VISION_HIDDEN),
            ("mlp.fc1", VISION_MLP, VISION_HIDDEN),
            ("mlp.fc2", VISION_HIDDEN, VISION_MLP),
        ):
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            shapes[f"{prefix}.{name}.bias"] = (rows,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}.{name}.weight"] = shapes[f"{prefix}.{name}.bias"] = (VISION_HIDDEN,)
    for part in ("weight", "bias"):
        shapes[f"vision_tower.vision_model.post_layernorm.{part}"] = (VISION_HIDDEN,)
    for name, columns in (("linear_1", VISION_HIDDEN), ("linear_2", HIDDEN)):
        shapes[f"multi_modal_projector.{name}.weight"] = (HIDDEN, columns)
        shapes[f"multi_modal_projector.{name}.bias"] = (HIDDEN,)

    shapes["language_model.model.embed_tokens.weight"] = (vocabulary_size, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}"
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (QUERY_HEADS * HEAD_SIZE, HIDDEN)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (KEY_HEADS * HEAD_SIZE, HIDDEN)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (KEY_HEADS * HEAD_SIZE, HIDDEN)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (HIDDEN, QUERY_HEADS * HEAD_SIZE)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes[f"{prefix}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["language_model.model.norm.weight"] = (HIDDEN,)
    shapes["language_model.lm_head.weight"] = (vocabulary_size, HIDDEN)
    return shapes


def tensor_values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw one tensor, float64; the draw depends on the seed and the name alone, not on other tensors."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(".bias"):
        return np.zeros(shape)
    if len(shape) == 1 and name.endswith(".weight"):  # the gain of a norm
        return np.ones(shape)
    if name.startswith("language_model.") and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = shape[0] // HEAD_SIZE
        return np.concatenate([head_projection(generator) for _ in range(heads)])
    inputs = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return generator.standard_normal(shape) / math.sqrt(inputs)


def head_projection(generator: np.random.Generator) -> np.ndarray:
    """Draw the rows of one query or key head, `[d_h, D]`, with a power-law spectrum of random exponent."""
    exponent = generator.uniform(0.0, 0.7)
    scales = np.arange(1, HEAD_SIZE + 1) ** -exponent
    mixing = generator.standard_normal((HEAD_SIZE, HEAD_SIZE))
    directions = generator.standard_normal((HEAD_SIZE, HIDDEN))
    rows = (mixing * scales) @ directions
    # The size of a Gaussian head with variance 1 / D, so that logits are of order one.
    return rows * (math.sqrt(HEAD_SIZE) / np.linalg.norm(rows))


def split_into_shards(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Fill `SHARDS` shards of about equal size, in order; a layer may lie across two, as in published models."""
    limit = sum(tensor.nbytes for tensor in tensors.values()) / SHARDS
    shards: list[dict[str, torch.Tensor]] = [{}]
    written = 0
    for name, tensor in tensors.items():
        if written >= limit * len(shards):
            shards.append({})
        shards[-1][name] = tensor
        written += tensor.nbytes
    return shards


def side_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the JSON files beside the weights, by name, with the keys that published checkpoints have."""
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    token_ids = {"bos_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[PAD]}
    clip_mean, clip_std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "dtype": "bfloat16",
            "image_token_index": ids[IMAGE],
            "image_seq_length": GRID * GRID,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": False,
            # The last of so few vision layers is too good to leave out, as the published -2 would.
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "text_config": {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "dtype": "bfloat16",
                "hidden_size": HIDDEN,
                "intermediate_size": MLP,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": QUERY_HEADS,
                "num_key_value_heads": KEY_HEADS,
                "head_dim": HEAD_SIZE,
                "hidden_act": "silu",
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "vocab_size": tokenizer.get_vocab_size(),
                **token_ids,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": VISION_HIDDEN,
                "intermediate_size": VISION_MLP,
                "num_hidden_layers": VISION_LAYERS,
                "num_attention_heads": VISION_HEADS,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "projection_dim": VISION_HIDDEN,
            },
        },
        "generation_config.json": {**token_ids, "do_sample": False, "max_new_tokens": 32},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": IMAGE_SIZE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": clip_mean,
            "image_std": clip_std,
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": PATCH_SIZE,
            # CLIP's class token, which the feature selection "default" leaves out again.
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            "bos_token": START,
            "eos_token": END,
            "pad_token": PAD,
            "image_token": IMAGE,
            "extra_special_tokens": {"image_token": IMAGE},
            "padding_side": "left",
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    }


def build(out: Path, seed: int = 0) -> None:
    """Write the whole checkpoint into the directory `out`, over files of the same names."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tensors = {
        name: torch.from_numpy(tensor_values(name, shape, seed)).to(torch.bfloat16)
        for name, shape in tensor_shapes(tokenizer.get_vocab_size()).items()
    }
    weight_map: dict[str, str] = {}
    shards = split_into_shards(tensors)
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (out / file).write_bytes(save(shard, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    for file, content in {**side_files(tokenizer), "model.safetensors.index.json": index}.items():
        write_text(out / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(out / "chat_template.jinja", CHAT_TEMPLATE)
    card = README.format(
        grid=GRID,
        image=IMAGE_SIZE,
        layers=LAYERS,
        hidden=HIDDEN,
        query_heads=QUERY_HEADS,
        head_size=HEAD_SIZE,
        key_heads=KEY_HEADS,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        shards=len(shards),
        words=len(WORDS),
    )
    write_text(out / "README.md", card)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the same line ends on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the checkpoint behind `--model demo`.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="directory to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: %(default)s)")
    options = parser.parse_args()
    build(options.out, options.seed)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
