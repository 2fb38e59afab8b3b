"""Checkpoints like DINO and BLIP with random weights, for plug-ins that mask a part of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

WORDS = ("is", "there", "a", "dog", "in", "the", "image", "?")
QUESTION = "Is there a dog in the image?"
# Those of facebook/dino-vits16 and Salesforce/blip-itm-base-coco.
DINO = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BLIP = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 16}


def save_image_models(place: Path, *, tiny: bool) -> dict[str, str]:
    """Save the models of the plug-ins that mask the picture; return their directories by plug-in."""
    dino, blip = (TINY, TINY) if tiny else (DINO, BLIP)
    return {"oa-vcd": _save_dino(place / "dino", dino), "agla": _save_blip(place / "blip", blip)}


def _save_dino(directory: Path, sizes: Mapping[str, int]) -> str:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(directory)
    return str(directory)


def _save_blip(directory: Path, sizes: Mapping[str, int]) -> str:
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={
            **sizes,
            **tokens,
            "encoder_hidden_size": sizes["hidden_size"],
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 512,
        },
        vision_config={**sizes, "image_size": 384, "patch_size": 16},
        image_text_hidden_size=256,
    )
    BlipForImageTextRetrieval(config).save_pretrained(directory)
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 384, "width": 384}), tokenizer).save_pretrained(directory)
    return str(directory)
