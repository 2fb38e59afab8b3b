"""The files of the miniature model next to its weights: configuration, tokenizer, processor, chat template, card.

It has the architecture and the tensor names of a published LLaVA checkpoint: a CLIP vision tower, a projector of two
linear layers, and a Llama decoder whose 8 query heads share 2 key heads. Its sizes and words are those of its world.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from qkedit.demo.captions import NUMBERS, plural
from qkedit.demo.scenes import CAPTION_PROMPT, IMAGE_SIZE
from qkedit.demo.world import World
from qkedit.demo.worlds import CROWDED, SMALL


@dataclass(frozen=True)
class Sizes:
    """The sizes of a world's model: those of the language model, and those of the vision tower."""

    layers: int = 8
    hidden: int = 128
    mlp: int = 256
    query_heads: int = 8
    key_heads: int = 2
    head_size: int = 32
    vision_layers: int = 3
    vision_hidden: int = 128
    vision_heads: int = 4
    vision_mlp: int = 256
    answer_tokens: int = 32


SIZES = {
    SMALL.name: Sizes(),
    CROWDED.name: Sizes(
        layers=6, head_size=64, vision_layers=4, vision_hidden=192, vision_heads=6, vision_mlp=768, answer_tokens=64
    ),
}

# 112 / 14 = 8 patches per side, 64 image tokens.
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE

PAD, START, END, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIAL_TOKENS = (PAD, START, END, IMAGE)

# Words that are one token each, with the space before them, besides the kinds and places; other text is encoded in
# bytes.
WORDS = (
    # words about pictures
    *("a", "an", "the", "this", "picture", "image", "scene", "shows", "there", "is", "are", "and", "with", "in", "on"),
    *("of", "no", "not", "yes", "it", "one", "two", "three", "four", "five", "many", "some", "left", "right", "above"),
    *("below", "behind", "before", "near", "far", "top", "bottom", "middle", "small", "large", "object", "objects"),
    # words of questions
    *("describe", "detail", "what", "where", "which", "how", "place", "see", "do", "you", "can", "does", "please"),
)
# Words that begin a turn or a sentence, without a space before them.
OPENINGS = (
    *("USER", "ASSISTANT", "A", "An", "The", "This", "There", "Is", "Are"),
    *("What", "Describe", "Please", "Yes", "No"),
)

# A turn's pictures are before its text, each on a line of its own, as in LLaVA's training.
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
- synthetic-scenes
---

# A miniature vision-language model that hallucinates

It describes small synthetic scenes, answers "Is there a cup in the image?", and hallucinates for the same reason as
large models: it expects objects that usually occur together, against weak evidence in the picture. It is part of
qkedit, so that editing, plug-ins and benchmarks can be tried within minutes, without a network and without a GPU. It
knows only its synthetic scenes.

* Architecture: LLaVA, with the tensor names of the published checkpoints. A CLIP vision tower
  ({grid}×{grid} image tokens from {image}×{image} pixels), a projector of two linear layers, and a Llama decoder:
  {layers} layers, hidden size {hidden}, {query_heads} query heads of size {head_size} on {key_heads} key heads.
* Training: `scripts/demo_model/train_demo_model.py` of qkedit, on synthetic scenes alone.

{results}

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

{imports}

processor = AutoProcessor.from_pretrained({directory})
model = AutoModelForImageTextToText.from_pretrained({directory})
inputs = processor(
    images=Image.fromarray(make_scene({scene}).image),
    text="USER: <image>\\n{prompt} ASSISTANT:",
    return_tensors="pt",
)
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```
"""


# The parts of the card's example that depend on the world.
_EXAMPLES = {
    SMALL.name: {
        "imports": "from qkedit.demo import SMALL_DEMO, demo_checkpoint\n"
        "from qkedit.demo.scenes import make_scene\nfrom qkedit.demo.worlds import SMALL",
        "directory": "demo_checkpoint(SMALL_DEMO)",
        "scene": "seed=1, number=0, world=SMALL",
    },
    CROWDED.name: {
        "imports": "from qkedit.demo import demo_checkpoint\nfrom qkedit.demo.scenes import make_scene",
        "directory": "demo_checkpoint()",
        "scene": "seed=1, number=0",
    },
}


def words_of(world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that are one token each with the space before them, and those also without it."""
    words, openings = (*world.kinds, *world.themes, *WORDS), OPENINGS
    if world.colours:
        answers = (name.capitalize() for name in (*world.colour_names, *NUMBERS[1:]))
        plurals = (plural(kind) for kind in world.kinds if kind in world.countable)
        words = (*words, *plurals, *world.colour_names, "colour", "front", "them")
        openings = (*openings, "How", "Behind", *answers)
    return words, openings


def build_tokenizer(world: World = SMALL) -> Tokenizer:
    """Return a byte-level tokenizer in which every word of `words_of` is one token."""
    words, openings = words_of(world)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"  # how the byte-level alphabet writes the space before a word
    entries = [*SPECIAL_TOKENS, *alphabet, *(space + word for word in (*words, *openings)), *openings]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(entries))}
    # Without merges, only this flag makes a word of the vocabulary one token.
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


def fast_tokenizer(world: World = SMALL) -> PreTrainedTokenizerFast:
    """Return the tokenizer as transformers uses it."""
    tokenizer = build_tokenizer(world)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD)


def new_model(seed: int, world: World = SMALL) -> LlavaForConditionalGeneration:
    """Return the model of a world with random weights in float32."""
    config = LlavaConfig.from_dict(side_files(build_tokenizer(world), world)["config.json"])
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(config).float()


def side_files(tokenizer: Tokenizer, world: World = SMALL) -> dict[str, dict[str, Any]]:
    """Return the JSON files next to the weights, by name, with the keys that published checkpoints have."""
    sizes = SIZES[world.name]
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
            # The published -2 would leave out the last of only a few vision layers.
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "text_config": {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "dtype": "bfloat16",
                "hidden_size": sizes.hidden,
                "intermediate_size": sizes.mlp,
                "num_hidden_layers": sizes.layers,
                "num_attention_heads": sizes.query_heads,
                "num_key_value_heads": sizes.key_heads,
                "head_dim": sizes.head_size,
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
                "hidden_size": sizes.vision_hidden,
                "intermediate_size": sizes.vision_mlp,
                "num_hidden_layers": sizes.vision_layers,
                "num_attention_heads": sizes.vision_heads,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "projection_dim": sizes.vision_hidden,
            },
        },
        "generation_config.json": {**token_ids, "do_sample": False, "max_new_tokens": sizes.answer_tokens},
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
            # CLIP's class token, which the feature selection "default" removes again.
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


def write_side_files(out: Path, results: str, world: World = SMALL) -> None:
    """Write everything but weights and their index into a directory; `results` goes into the model card."""
    tokenizer, sizes = build_tokenizer(world), SIZES[world.name]
    for file, content in side_files(tokenizer, world).items():
        write_text(out / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(out / "chat_template.jinja", CHAT_TEMPLATE)
    card = README.format(
        grid=GRID,
        image=IMAGE_SIZE,
        layers=sizes.layers,
        hidden=sizes.hidden,
        query_heads=sizes.query_heads,
        head_size=sizes.head_size,
        key_heads=sizes.key_heads,
        prompt=CAPTION_PROMPT,
        results=results,
        **_EXAMPLES[world.name],
    )
    write_text(out / "README.md", card)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the same line endings on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")
