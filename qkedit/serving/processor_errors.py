"""Which image a model's processor does not take, and by which of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qkedit.errors import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

# What image processors bound or scale images by, as preprocessor_config.json names it.
_SETTINGS = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size")


def image_at_fault(processor: Any, images: Sequence[Image]) -> tuple[int, str] | None:
    """Return the number of the first image that a processor does not take alone, and why; None if it takes each.

    To be asked once it has failed, for what it says then names no image.
    """
    take = getattr(processor, "image_processor", None)
    if take is None:
        return None
    for number, image in enumerate(images, start=1):
        try:
            take(images=[image], return_tensors="pt")
        # A processor may fail in any way, and each of them means the same here.
        except Exception as error:
            return number, (
                f"the model's processor does not take its {image.width} × {image.height} pixels "
                f"with {_settings(take)} ({first_line(error)})"
            )
    return None


def _settings(take: Any) -> str:
    found = {name: getattr(take, name, None) for name in _SETTINGS}
    return ", ".join(f"{name} {_plain(value)}" for name, value in found.items() if value is not None) or "its settings"


def _plain(value: Any) -> str:
    """Return a setting in a few words; sizes are mappings most of whose entries are unset."""
    if not hasattr(value, "items"):
        return str(value)
    return " ".join(f"{name}={entry}" for name, entry in value.items() if entry is not None)
