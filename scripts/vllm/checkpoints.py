"""Write the tiny checkpoints that the comparison on vLLM uses: a Qwen2-VL with its processor, and a depth model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

QUESTION_WORDS = ("is", "there", "a", "cup", "in", "the", "image?", "user", "assistant", "it")
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<start>": 3, "<stop>": 4, "<image>": 5, "<video>": 6}
TEMPLATE = (
    "{%- for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}<start> <image> <stop> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}it{% endif %}"
)


def seeded(model: Any) -> Any:
    """Fill a model with noise large enough that attention is not uniform, and return it."""
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


def qwen2_vl(directory: Path) -> None:
    """Write a tiny Qwen2-VL in float32."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 2,
            "patch_size": 8,
            "mlp_ratio": 2,
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    vocabulary = {f"<{number}>": number for number in range(128)}
    for word, number in [*SPECIAL.items(), *zip(QUESTION_WORDS, range(40, 128), strict=False)]:
        vocabulary.pop(f"<{number}>")
        vocabulary[word] = number
    words = Tokenizer(WordLevel(vocabulary, unk_token="<127>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_start_token": "<start>",
            "vision_end_token": "<stop>",
        },
    )
    sizes = {"patch_size": 8, "merge_size": 2, "min_pixels": 32 * 32, "max_pixels": 160 * 160}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=TEMPLATE
    )
    seeded(Qwen2VLForConditionalGeneration(config)).save_pretrained(directory)
    processor.save_pretrained(directory)


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
        for parameter in model.head.parameters():  # it ends with a ReLU, which negative weights would shut
            parameter.abs_()
    model.save_pretrained(directory)
    side = {"height": 56, "width": 56}
    DPTImageProcessorPil(size=side, keep_aspect_ratio=False, ensure_multiple_of=14).save_pretrained(directory)
