"""Make tiny models to serve: a LLaVA as a directory, and a Qwen2-VL whose processor does not need torchvision."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qkedit.runtime.generation import LoadedModel
from tests.plugins.tiny_requests import model
from tests.serving.tiny_processors import _tokenizer

TEMPLATE = (
    "{%- for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}it{% endif %}"
)


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """Return noise that depends on the seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def llava(directory: Path) -> Path:
    """Save a tiny LLaVA with its processor, and return its directory."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = {"height": 48, "width": 48}
    pictures = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=side)
    processor = LlavaProcessor(
        pictures,
        _tokenizer(),
        patch_size=8,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    model("llava").save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@functools.cache
def qwen() -> LoadedModel:
    """Return a tiny Qwen2-VL, which stores the position offset of the last prompt on its module."""
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideos(Qwen2VLProcessor):
        """A processor of images and texts, without videos, which need torchvision."""

        def __init__(self, pictures: Any, tokenizer: Any, template: str) -> None:
            self.image_processor, self.tokenizer = pictures, tokenizer
            self.image_token, self.image_token_id = "<image>", 5
            self.video_token, self.video_token_id = "<6>", 6
            self.chat_template = template

    pictures = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=96 * 96)
    template = TEMPLATE.replace("IMAGE", "<3> <image> <4>")
    return LoadedModel("qwen2-vl", model("qwen2-vl"), WithoutVideos(pictures, _tokenizer(), template))
