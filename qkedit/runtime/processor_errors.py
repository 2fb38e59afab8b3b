"""Find the image or the prompt that a model's processor does not accept, and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from qkedit.errors import UsageError, first_sentence

if TYPE_CHECKING:
    from PIL.Image import Image

# The settings by which image processors limit or scale images, as named in preprocessor_config.json.
_SETTINGS = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size")


def placeholders(processor: Any) -> tuple[str, ...]:
    """Return a processor's placeholders for an image or a video."""
    names = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    return tuple(name for name in names if isinstance(name, str))


def refuse_placeholders(processor: Any, prompt: str, where: str) -> None:
    """Refuse a prompt that names an image itself, of which the processor would find one too many.

    Args:
        processor: the model's.
        prompt: what is asked.
        where: what the prompt is called in the error.

    Raises:
        UsageError: the prompt holds such a text, as data sets for one family have it.
    """
    for placeholder in placeholders(processor):
        if placeholder in prompt:
            raise UsageError(
                f"the prompt holds {placeholder!r}, which stands for an image to this model",
                where=where,
                remedy="take it out; images are given separately",
            )


def refused(processor: Any, images: Sequence[Image], error: Exception) -> str:
    """Describe the input that a processor refuses: the first image that it refuses alone, or the whole input.

    Args:
        processor: the model's processor.
        images: the images passed to it.
        error: the processor's error, which seldom names an image.
    """
    take: Any = getattr(processor, "image_processor", None)
    for number, image in enumerate(images if take is not None else (), start=1):
        try:
            take(images=[image], return_tensors="pt")
        # A processor may fail in any way, and all failures mean the same here.
        except Exception as own:
            size = f"{image.width} × {image.height} pixels"
            return f"image {number} of {size} with {_settings(take)} ({type(own).__name__}: {first_sentence(own)})"
    return f"the prompt and the images ({type(error).__name__}: {first_sentence(error)})"


def _settings(take: Any) -> str:
    found = {name: getattr(take, name, None) for name in _SETTINGS}
    return ", ".join(f"{name} {_plain(value)}" for name, value in found.items() if value is not None) or "its settings"


def _plain(value: Any) -> str:
    """Return a setting in short form; sizes are mappings with many unset entries."""
    entries = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if not isinstance(entries, Mapping):
        return str(entries)
    return " ".join(f"{name}={entry}" for name, entry in entries.items() if entry is not None)
