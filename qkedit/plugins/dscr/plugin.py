"""DSCR: refine the cached keys of image tokens by depth and place (Depth- and Spatial-aware Cache Refinement,
ICLR 2026, OpenReview FHTt9ipAra).

Once per request, when the prompt is in the key-value cache and before the first answer token, the key of every image
token becomes a weighted mean of the keys of the other tokens in its grid, with larger weights for those that are near
in depth and in the plane:

    k̂_j = Σ_i w_ij k_i,        w from `qkedit.plugins.dscr.mixing`, the same for all heads and layers.

Choices that the paper leaves open are options here, with these defaults: grids (tiles, images) are never mixed with
each other; the layers are the last three quarters; only keys are refined, as its ablation recommends; they are mixed
in the form they have in the cache; and the prompt's last token runs once more, so that even the first answer token
reads the refined cache.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from qkedit.checkpoint.pretrained import from_pretrained
from qkedit.errors import UsageError
from qkedit.images import pixel_sha256, read_image
from qkedit.plugins.core.image_models import model_files
from qkedit.plugins.core.option_limits import check_words
from qkedit.plugins.dscr.depth import (
    DEFAULT_DEPTH_MODEL,
    DEPTH_FILE_ENDINGS,
    DepthFiles,
    DepthModel,
    checked_depth,
    depth_files,
    read_depth,
)
from qkedit.plugins.dscr.depth_grid import WHOLE
from qkedit.plugins.dscr.depth_views import CROPPED_OR_PADDED, View, as_picture, depth_on_grid, region_of_view, views
from qkedit.plugins.dscr.mixing import Kernel, mixing_weights, standardized
from qkedit.plugins.dscr.refinement import CacheRefinement, Refinement
from qkedit.selection import check_layers, select_layers

if TYPE_CHECKING:
    from qkedit.plugins.core.modules import VLMModules
    from qkedit.plugins.core.prefill import Prefill

# The depth of this many pictures is cached, so that several questions about one image need one estimate.
DEPTHS_KEPT = 32


@dataclass(frozen=True)
class DSCR:
    """The settings of DSCR.

    Attributes:
        depth: the name or directory of a depth model, which gets the picture after the processor; a depth file
            (`.npy`, 16-bit `.png`) of the request's only image; a directory of such files, each named by the
            `pixel_sha256` of its image; or a map `[height, width]` per image.
        layers: layers of the decoder, such as 10-39; None for ⌊L/4⌋ … L−1.
        refine: keys, values or both.
        space: whether to mix keys in the form of the cache, or before their rotation by position.
        blend: γ, the share of the mix in the refined key; 0 leaves the cache unchanged.
        when: after the prompt, whose last token then runs again; or after the prompt's last image token, so that the
            question reads the refined cache.
        lost_cells: for a sliding layer that holds only a part of a grid: mix the remaining cells, or skip the grid.
        standardize: whether depth is measured in standard deviations of its grid; False uses raw values.
        depth_sigma, place_sigma, depth_exponent, place_exponent: σ_d, σ_s, α and β.
        processor: the model's processor; None loads the one next to the model's weights when it is needed.
    """

    depth: str | Path | Tensor | Sequence[Tensor] = DEFAULT_DEPTH_MODEL
    layers: str | None = None
    refine: Literal["keys", "values", "both"] = "keys"
    space: Literal["cache", "pre-rotation"] = "cache"
    blend: float = 1.0
    when: Literal["prompt", "image"] = "prompt"
    lost_cells: Literal["mix", "skip"] = "mix"
    standardize: bool = True
    depth_sigma: float = Kernel.depth_sigma
    place_sigma: float = Kernel.place_sigma
    depth_exponent: float = Kernel.depth_exponent
    place_exponent: float = Kernel.place_exponent
    processor: Any = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "dscr"

    def files_for(self, pictures: Iterable[Path]) -> list[Path]:
        """Return the depth file, those of these pictures in a directory, or the files of a depth model."""
        if not isinstance(self.depth, str | Path):
            return []
        if (files := depth_files(self.depth)) is not None:
            return [files.file_of(pixel_sha256(read_image(picture))) for picture in pictures]
        place = Path(self.depth)
        return [place] if place.is_file() else model_files(str(place)) if place.is_dir() else []

    def __post_init__(self) -> None:
        """Check the settings that do not depend on a model. Raises UsageError."""
        check_words(self)
        check_layers(self.layers, "dscr layers")
        if not 0 <= self.blend <= 1:
            raise UsageError(f"{self.blend} is not a share", where="dscr blend", remedy="give a number from 0 to 1")
        for option in ("depth_sigma", "place_sigma"):
            if not (value := getattr(self, option)) > 0 or math.isinf(value):
                raise UsageError(
                    f"{value} is not positive and finite", where=f"dscr {option}", remedy="give a value such as 0.6"
                )
        for option in ("depth_exponent", "place_exponent"):
            if not (value := getattr(self, option)) >= 0 or math.isinf(value):
                raise UsageError(
                    f"{value} is negative or not finite", where=f"dscr {option}", remedy="give a value such as 0.6"
                )

    @property
    def reads_pictures(self) -> bool:
        """Whether depth is found by an image's pixels; see `pictures.reads_pictures`."""
        return depth_files(self.depth) is not None

    @property
    def kernel(self) -> Kernel:
        """The decay of the weights."""
        return Kernel(self.depth_sigma, self.place_sigma, self.depth_exponent, self.place_exponent)

    def bind(self, parts: VLMModules) -> BoundDSCR:
        """Check the settings against a model. Raises UsageError for layers that it does not have."""
        return BoundDSCR(self, parts)


class BoundDSCR:
    """DSCR on one model."""

    def __init__(self, settings: DSCR, parts: VLMModules) -> None:
        self._settings = settings
        self._parts = parts
        count = len(parts.layers)
        self.layers = select_layers(
            settings.layers or f"{count // 4}-{count - 1}", count, parts.attention_layers, "dscr layers"
        )
        self._estimates: OrderedDict[bytes, Tensor] = OrderedDict()
        # Read once and immediately, so that a missing file is reported before the first request.
        self._maps = _maps_at_hand(settings.depth)
        self._files = depth_files(settings.depth)
        self._model: DepthModel | None = None
        self._processor: Any = None

    def start(self, prefill: Prefill) -> CacheRefinement:
        """Compute the weights of every grid of the request."""
        settings = self._settings
        grids = prefill.grids.grids
        depth = self._depth_of_grids(prefill)
        device = prefill.arguments["inputs_embeds"].device
        weights = {}
        for grid in grids:
            key = (grid.image, grid.kind, grid.tile)
            if key not in weights:
                own = depth[key].flatten().to(device)
                rows, columns = grid.shape
                places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2).to(device)
                own = standardized(own) if settings.standardize else own
                weights[key] = mixing_weights(own, places, settings.kernel)
        refinement = Refinement(
            layers=self.layers,
            keys=settings.refine in ("keys", "both"),
            values=settings.refine in ("values", "both"),
            blend=settings.blend,
            skip_incomplete=settings.lost_cells == "skip",
        )
        ends: list[int | None] = [None] * prefill.grids.batch
        for extent in prefill.grids.extents:
            after_image = max(ends[extent.row] or 0, extent.last + 1)
            ends[extent.row] = after_image if settings.when == "image" else prefill.length - 1
        unrotates = settings.space == "pre-rotation" and refinement.keys
        return CacheRefinement(
            refinement,
            prefill.key_rotations(self.layers) if unrotates else None,
            grids,
            [weights[grid.image, grid.kind, grid.tile] for grid in grids],
            tuple(ends),
        )

    def _depth_of_grids(self, prefill: Prefill) -> Mapping[tuple[int, str, int | None], Tensor]:
        """Return the depth of the cells of every grid, `[rows, columns]`, by image, kind and tile."""
        grids = prefill.grids.grids
        shown = views(self._parts.config, prefill.inputs, grids)
        maps = self._maps if self._files is None else self._maps_from(self._files, prefill)
        if maps is not None and len(maps) != len(shown):
            raise UsageError(
                f"{len(maps)} depth maps were given, but the request has {len(shown)} images",
                where="dscr depth",
                remedy="give one map per image, or the name of a depth model",
            )
        found = {}
        for image, view in enumerate(shown):
            if maps is None:
                depth, region = self._estimate(view, prefill.arguments["inputs_embeds"].device), WHOLE
            else:
                depth = maps[image]
                cropped = self._parts.config.model_type in CROPPED_OR_PADDED
                region = region_of_view(self._image_processor(), *depth.shape) if cropped else WHOLE
            for grid in grids:
                if grid.image == image:
                    found[image, grid.kind, grid.tile] = depth_on_grid(depth, grid, view, region)
        return found

    def _maps_from(self, files: DepthFiles, prefill: Prefill) -> list[Tensor]:
        """Return the depth maps of the images of a request, from the cache if an earlier request had them."""
        names = prefill.image_hashes()
        if names is None:
            raise UsageError(
                "the images of the request are not known here",
                where="dscr depth",
                remedy="answer with qkedit.generate, or call remember_pictures (docs/rivals.md)",
            )
        return [self._kept(name.encode(), partial(files.depth_of, name)) for name in names]

    def _kept(self, key: bytes, made: Callable[[], Tensor]) -> Tensor:
        """Return the depth of an image that was used lately, or make it."""
        if key not in self._estimates:
            self._estimates[key] = made()
        self._estimates.move_to_end(key)
        while len(self._estimates) > DEPTHS_KEPT:
            self._estimates.popitem(last=False)
        return self._estimates[key]

    def _estimate(self, view: View, device: torch.device) -> Tensor:
        """Return the depth of a picture, from the cache if an earlier request had the identical picture."""
        if self._model is None:
            # The request's device: weights that accelerate loads on demand have no device before.
            self._model = DepthModel(str(self._settings.depth), device)
        picture = as_picture(view, self._image_processor())
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
        model = self._model
        return self._kept(digest, lambda: model.estimate(picture))

    def _image_processor(self) -> Any:
        if self._processor is None:
            given = self._settings.processor
            self._processor = _processor_beside(self._parts.model) if given is None else given
        return getattr(self._processor, "image_processor", self._processor)


def _maps_at_hand(depth: str | Path | Tensor | Sequence[Tensor]) -> list[Tensor] | None:
    """Return the given depth maps; None if a depth model was given."""
    if isinstance(depth, str | Path):
        return [read_depth(depth)] if Path(depth).suffix.lower() in DEPTH_FILE_ENDINGS else None
    given = [depth] if isinstance(depth, Tensor) and depth.ndim == 2 else list(depth)
    return [checked_depth(torch.as_tensor(one), "dscr depth") for one in given]


def _processor_beside(model: Any) -> Any:
    from transformers import AutoImageProcessor

    try:
        return from_pretrained(AutoImageProcessor, model.name_or_path)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"its image processor cannot be loaded from {model.name_or_path!r}, and only it knows how pictures are "
            "prepared",
            where="dscr",
            remedy="give DSCR(processor=…), or `pip install 'qkedit[runtime]'` if torchvision is missing",
        ) from error
