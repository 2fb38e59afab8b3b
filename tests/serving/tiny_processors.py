"""Tiny models of a few families, each with its own processor class, over a tokenizer of a hundred words."""

from __future__ import annotations

import functools
from typing import Any

from qkedit.runtime.generation import LoadedModel
from tests.plugins.tiny_requests import model

# The ids that tests/tiny_configs.py has for special tokens.
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 5, "<begin>": 6, "<end>": 7}
WORDS = ("is", "there", "a", "cup", "in", "the", "image", "describe", "it", "please", "and", "what", "stands", "here")
FAMILIES = ("llava-next", "gemma3")


@functools.cache
def loaded(family: str) -> LoadedModel:
    """Return a shared tiny model in float32 with its processor, which tests must not change."""
    return LoadedModel(family, model(family), _PROCESSORS[family](), chat_template="none")


def _tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<{number}>": number for number in range(128)}
    for word, number in [*SPECIAL.items(), *zip(WORDS, range(40, 128), strict=False)]:
        vocabulary.pop(f"<{number}>")
        vocabulary[word] = number
    words = Tokenizer(WordLevel(vocabulary, unk_token="<127>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",  # as in many published tokenizers, which were made for training
        extra_special_tokens={"image_token": "<image>", **special},
    )


def _llava_next() -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    side = {"height": 48, "width": 48}
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 48}, crop_size=side, image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]]
    )
    return LlavaNextProcessor(
        pictures,
        _tokenizer(),
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )


def _gemma3() -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    pictures = Gemma3ImageProcessor(size={"height": 48, "width": 48})
    tokenizer = _tokenizer(boi_token="<begin>", eoi_token="<end>")
    return Gemma3Processor(pictures, tokenizer, image_seq_length=36)


_PROCESSORS = {"llava-next": _llava_next, "gemma3": _gemma3}
