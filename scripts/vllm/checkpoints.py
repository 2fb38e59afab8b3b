"""Write the tiny checkpoints for the comparison on vLLM: one of each family, and a depth model.

Every text decoder has 8 layers with 4 query heads and 2 key heads. The head size, 32, is the smallest that vLLM's
attention supports on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION_WORDS = ("is", "there", "a", "cup", "in", "the", "image?", "user", "assistant", "it")
SPECIAL = (
    *("<pad>", "<s>", "</s>", "<start>", "<stop>", "<image>", "<video>", "[IMG_BREAK]", "[IMG_END]"),
    *("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
VOCABULARY = 128
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
QWEN_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    **TOKENS,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 8}
QWEN_SIZES: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "min_pixels": 32 * 32, "max_pixels": 160 * 160}
PINPOINTS = [[48, 96], [96, 48], [96, 96]]


def multimodal_rope(*section: int) -> dict[str, Any]:
    """Return the rotary settings whose channels are divided between time, height and width."""
    return {"rope_type": "default", "mrope_section": [*section], "rope_theta": 10000.0}


def template(image: str) -> str:
    """Return a chat template that writes `image` for every image."""
    return (
        "{%- for message in messages %}{{ message.role }} {% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + " {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}it{% endif %}"
    )


def tokenizer(**named: str) -> Any:
    """Return a tokenizer of whole words; `named` are the special tokens that a processor reads as its attributes."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *QUESTION_WORDS]
    words += [f"<{number}>" for number in range(len(words), VOCABULARY)]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[-1]))
    made.pre_tokenizer = WhitespaceSplit()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=named
    )


def seeded(model: Any) -> Any:
    """Fill a model with noise, large enough that attention is not uniform, and return the model."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.15 * noise)
    return model.eval()


def write(directory: Path, model_type: str, processor: Any, **settings: Any) -> None:
    """Write a model in float32 with its processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(model_type, tie_word_embeddings=False, **settings)
    seeded(AutoModelForImageTextToText.from_config(config)).save_pretrained(directory)
    if config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model"):
        _name_tower_as_published(directory / "model.safetensors")
    processor.save_pretrained(directory)


def _name_tower_as_published(file: Path) -> None:
    """Insert `vision_model` into the names of a vision tower: transformers omits it, and vLLM expects it."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    named = {
        f"{tower}vision_model.{name.removeprefix(tower)}" if name.startswith(tower) else name: tensor
        for name, tensor in load_file(file).items()
    }
    save_file(named, file, metadata={"format": "pt"})


def qwen_processor(kind: str) -> Any:
    """Return the processor of a Qwen family; `kind` is the first part of its class's name."""
    import transformers

    words = tokenizer(
        image_token="<image>", video_token="<video>", vision_start_token="<start>", vision_end_token="<stop>"
    )
    video = transformers.Qwen3VLVideoProcessor if kind == "Qwen3VL" else transformers.Qwen2VLVideoProcessor
    images, videos = transformers.Qwen2VLImageProcessor(**QWEN_SIZES), video(**QWEN_SIZES)
    return getattr(transformers, f"{kind}Processor")(
        images, words, videos, chat_template=template("<start> <image> <stop>")
    )


def qwen2_vl(directory: Path) -> None:
    vision = {**QWEN_VISION, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    text = {**TEXT, "rope_parameters": multimodal_rope(4, 6, 6)}
    write(directory, "qwen2_vl", qwen_processor("Qwen2VL"), text_config=text, vision_config=vision, **QWEN_TOKENS)


def qwen2_5_vl(directory: Path) -> None:
    vision = {
        **QWEN_VISION,
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 96,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    text = {**TEXT, "rope_parameters": multimodal_rope(4, 6, 6)}
    write(directory, "qwen2_5_vl", qwen_processor("Qwen2_5_VL"), text_config=text, vision_config=vision, **QWEN_TOKENS)


def qwen3_vl(directory: Path) -> None:
    vision = {
        **QWEN_VISION,
        "depth": 3,
        "hidden_size": 64,
        "out_hidden_size": 128,
        "intermediate_size": 96,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**TEXT, "rope_parameters": {**multimodal_rope(6, 5, 5), "mrope_interleaved": True}}
    write(directory, "qwen3_vl", qwen_processor("Qwen3VL"), text_config=text, vision_config=vision, **QWEN_TOKENS)


def llava_next(directory: Path) -> None:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    write(
        directory,
        "llava_next",
        processor,
        text_config={**TEXT, "model_type": "mistral", "sliding_window": None},
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 64},
        image_token_index=5,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision(directory: Path) -> None:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"height": 48, "width": 48}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer(),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    write(
        directory,
        "llava_onevision",
        processor,
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=5,
        video_token_index=6,
        image_grid_pinpoints=PINPOINTS,
    )


def internvl(directory: Path) -> None:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": 40, "width": 40}
    words = tokenizer(
        start_image_token="<start>", end_image_token="<stop>", context_image_token="<image>", video_token="<video>"
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, max_patches=4),
        words,
        InternVLVideoProcessor(size=size),
        image_seq_length=25,
        chat_template=template("<image>"),
    )
    write(
        directory,
        "internvl",
        processor,
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**VISION, "image_size": [40, 40], "patch_size": [4, 4]},
        image_token_id=5,
        image_seq_length=25,
    )


def idefics3(directory: Path) -> None:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    images = Idefics3ImageProcessor(size={"longest_edge": 80}, max_image_size={"longest_edge": 40})
    processor = Idefics3Processor(images, tokenizer(), image_seq_len=25, chat_template=template("<image>"))
    write(
        directory,
        "idefics3",
        processor,
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "image_size": 40, "patch_size": 4},
        image_token_id=5,
        scale_factor=2,
        **TOKENS,
    )


def mistral3(directory: Path) -> None:
    from transformers import PixtralImageProcessor, PixtralProcessor

    sizes = {"size": {"longest_edge": 128}, "patch_size": {"height": 8, "width": 8}}
    processor = PixtralProcessor(
        PixtralImageProcessor(**sizes),
        tokenizer(),
        patch_size=8,
        spatial_merge_size=2,
        image_token="<image>",
        chat_template=template("<image>"),
    )
    write(
        directory,
        "mistral3",
        processor,
        text_config={**TEXT, "model_type": "mistral", "sliding_window": None},
        vision_config={**VISION, "model_type": "pixtral", "image_size": 128, "head_dim": 32},
        image_token_index=5,
        spatial_merge_size=2,
    )


def depth_model(directory: Path) -> None:
    """Write a tiny Depth-Anything with its image processor."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessorPil

    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=32,
            patch_size=14,
            head_hidden_size=4,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in model.head.parameters():  # It ends with a ReLU, and negative weights would make all depth 0.
            parameter.abs_()
    model.save_pretrained(directory)
    side = {"height": 56, "width": 56}
    DPTImageProcessorPil(size=side, keep_aspect_ratio=False, ensure_multiple_of=14).save_pretrained(directory)


FAMILIES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (qwen2_vl, qwen2_5_vl, qwen3_vl, llava_next, llava_onevision, internvl, idefics3, mistral3)
}
"""The functions that write a tiny model into a directory, by `model_type`."""
