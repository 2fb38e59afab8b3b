"""Tiny random checkpoints of a vision transformer and of BLIP's matching model, for plug-ins that mask images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

WORDS = ("is", "there", "a", "red", "boat", "in", "the", "picture", "?", "describe")


def save_vit(directory: Path, *, registers: bool = False) -> str:
    """Save a vision transformer without a pooler, like DINO's, and its processor; return the directory."""
    from transformers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model: nn.Module
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=3))
    else:
        model = ViTModel(ViTConfig(**sizes, intermediate_size=16), add_pooling_layer=False)
    _spread(model)
    model.save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 40 if registers else 32}).save_pretrained(directory)
    return str(directory)


def save_blip(directory: Path) -> str:
    """Save BLIP's model for image-text matching and its processor; return the directory."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    model = BlipForImageTextRetrieval(
        BlipConfig(
            text_config={
                **sizes,
                **tokens,
                "num_hidden_layers": 3,
                "encoder_hidden_size": 16,
                "vocab_size": 15,
                "max_position_embeddings": 12,
            },
            vision_config={**sizes, "image_size": 48, "patch_size": 8},
            image_text_hidden_size=8,
        )
    )
    _spread(model)
    with torch.no_grad():  # image and text match weakly, so that a part is masked
        model.vision_proj.bias.fill_(4)
        model.text_proj.bias.fill_(4)
    model.save_pretrained(directory)
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 48, "width": 48}), tokenizer).save_pretrained(directory)
    return str(directory)


def _spread(model: nn.Module) -> None:
    """Make the weights so large that attention is not uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    0.4 * torch.randn_like(parameter) if "embed" not in name else torch.randn_like(parameter)
                )
