"""The sources of depth: a depth model, a file, a directory of files, or a tensor. A map is float32 `[height, width]`.

Depth models return relative depth or its inverse, in their own units. DSCR uses only differences of standardized
depth, so neither unit nor sign matters.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkedit.errors import UsageError, read_failure
from qkedit.images import as_rgb
from qkedit.plugins.core.image_models import explained_failure, load_image_model

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
DEPTH_FILE_ENDINGS = (".npy", ".png")


@dataclass(frozen=True)
class DepthModel:
    """A monocular depth model of transformers (Depth-Anything, DPT, MiDaS …), loaded at its first use.

    Args:
        name: a hub id, or a directory that holds the model and its image processor.
        device: the device to run it on.
    """

    name: str = DEFAULT_DEPTH_MODEL
    device: str | torch.device = field(default="cpu", compare=False)

    def estimate(self, image: Image) -> Tensor:
        """Return the depth of every pixel of an image. Raises QkeditError if the model is not usable."""
        processor, model = self._loaded
        size = [(image.height, image.width)]
        with explained_failure(
            f"cannot estimate the depth of a picture of {image.width} × {image.height} pixels",
            self.name,
            "use another depth model, or give a depth map as .npy or .png",
        ):
            finish = processor.post_process_depth_estimation
            # Only ZoeDepth also needs the original size, to remove its padding.
            known = inspect.signature(finish).parameters
            sizes = {name: size for name in ("target_sizes", "source_sizes") if name in known}
            inputs = processor(images=[as_rgb(image)], return_tensors="pt").to(self.device)
            with torch.no_grad():
                (estimate,) = finish(model(**inputs), **sizes)
        return checked_depth(estimate["predicted_depth"].float().cpu(), self.name)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        processor, model = load_image_model(
            AutoImageProcessor,
            AutoModelForDepthEstimation,
            self.name,
            "a depth model",
            "give the directory of a depth model of transformers, or a depth map as .npy or .png",
        )
        return processor, model.to(self.device)


@dataclass(frozen=True)
class DepthFiles:
    """Depth maps in a directory, each named by its image: `<pixel_sha256>.npy` or `.png`, see `qkedit.images`."""

    directory: Path

    def file_of(self, image: str) -> Path:
        """Return the depth map of an image by its hash. Raises UsageError if there is none."""
        for ending in DEPTH_FILE_ENDINGS:
            if (file := self.directory / f"{image}{ending}").is_file():
                return file
        raise UsageError(
            f"holds no depth map {image}.npy",
            where=str(self.directory),
            remedy="add that of the image with these pixels",
        )

    def depth_of(self, image: str) -> Tensor:
        """Return the depth of an image by its hash. Raises UsageError if there is no depth map of it."""
        return read_depth(self.file_of(image))


def depth_files(depth: object) -> DepthFiles | None:
    """Return the depth maps in a directory; None for any other source of depth, as the directory of a depth model."""
    if not isinstance(depth, str | Path) or not (place := Path(depth)).is_dir() or (place / "config.json").exists():
        return None
    return DepthFiles(place) if any(file.suffix in DEPTH_FILE_ENDINGS for file in place.iterdir()) else None


def is_depth_model(depth: object) -> bool:
    """Return whether a source of depth names a depth model."""
    is_named = isinstance(depth, str | Path) and Path(depth).suffix.lower() not in DEPTH_FILE_ENDINGS
    return is_named and depth_files(depth) is None


def read_depth(file: str | Path) -> Tensor:
    """Read a depth map.

    Args:
        file: `.npy`, a two-dimensional array of numbers; or `.png`, one channel of 8 or 16 bits.

    Raises:
        UsageError: the file does not exist, or does not hold a depth map.
    """
    import numpy as np
    from PIL import Image

    path = Path(file)
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("L", "I;16", "I;16B", "I"):
                    raise UsageError(
                        "a depth map has one channel, but this image has colours",
                        where=str(path),
                        remedy="give the depth itself, as 16-bit PNG or .npy, not a colour rendering of it",
                    )
                values = np.asarray(image)
        # Booleans and text are not depth, and complex numbers have no order.
        if values.dtype.kind not in "iuf":
            raise ValueError(f"numbers of type {values.dtype}")
        depth = torch.from_numpy(values.astype(np.float32))
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"cannot be read as a depth map ({read_failure(error)})",
            where=str(path),
            remedy="give a two-dimensional .npy array or a 16-bit PNG",
        ) from error
    return checked_depth(depth, str(path))


def checked_depth(depth: Tensor, where: str = "depth") -> Tensor:
    """Return a depth map as float32. Raises UsageError unless it is two-dimensional and finite."""
    if depth.ndim != 2 or depth.numel() == 0:
        raise UsageError(
            f"a depth map has the shape [height, width], not {list(depth.shape)}", where=where, remedy="give one map"
        )
    depth = depth.detach().float()
    if not depth.isfinite().all():
        raise UsageError("holds values that are not finite numbers", where=where, remedy="fill the gaps of the map")
    return depth
