"""OA-VCD and AGLA as settings: the contrast and the sum with a picture of which a second model masks a part.

    oa-vcd    (1 + α) l − α l′     the second image lacks what is salient to a vision transformer (`salience.py`)
    agla      l + α l′             the second image keeps what matches the question (`matching.py`)

where l ≥ log β + max l, else −∞.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qkedit.errors import UsageError
from qkedit.plugins.contrast.branches import second_image
from qkedit.plugins.contrast.image_contrast import summed
from qkedit.plugins.contrast.matching import MatchingKept
from qkedit.plugins.contrast.plugin import BoundContrast
from qkedit.plugins.contrast.salience import SalientMasked
from qkedit.plugins.contrast.settings import ContrastSettings, constant
from qkedit.plugins.core.image_models import model_files
from qkedit.plugins.core.modules import VLMModules


@dataclass(frozen=True)
class OAVCD(ContrastSettings):
    """Settings of OA-VCD (object-aligned visual contrastive decoding, arXiv 2602.11737).

    Attributes:
        model: a self-supervised vision transformer of transformers (DINO, DINOv2 …): a hub id or a directory.
        share: the share of the picture's patches that are masked: those to which the class token attends most in the
            last layer, averaged over heads. The default is ours.
        alpha, beta, control: as in VCD, whose defaults the paper takes over.
    """

    name: ClassVar[str] = "oa-vcd"
    reads_pictures: ClassVar[bool] = True

    model: str = ""
    share: float = 0.2
    alpha: float = 1.0
    beta: float = 0.1
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        _check_model(self.model, self.name, "a DINO transformer, such as facebook/dino-vits16")
        if not 0 <= self.share <= 1:
            raise UsageError(f"{self.share:g} is not a share", where="oa-vcd share", remedy="give 0 to 1")

    def files_for(self, pictures: Iterable[Path]) -> list[Path]:
        """Return the files of the model that masks."""
        return model_files(self.model)

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid, and load the vision transformer. Raises QkeditError."""
        return self.bound(constant(self.alpha), second_image(SalientMasked(self.model, self.share), self.name))


@dataclass(frozen=True)
class AGLA(ContrastSettings):
    """Settings of AGLA (assembly of global and local attention, arXiv 2406.12718).

    Attributes:
        model: a BLIP model for image-text matching (`BlipForImageTextRetrieval`): a hub id or a directory.
        layer: the layer of its text encoder whose cross-attention tells what matches, counted from 0; 6 as published.
        alpha: α, the weight of the second image's logits; 2 as published.
        beta: β, the plausibility cut, by the logits for the picture itself; 0.5 as published.
        control: as in VCD.
    """

    name: ClassVar[str] = "agla"
    reads_pictures: ClassVar[bool] = True

    model: str = ""
    layer: int = 6
    alpha: float = 2.0
    beta: float = 0.5
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings. Raises UsageError."""
        super().__post_init__()
        _check_model(self.model, self.name, "a BLIP model for matching, such as Salesforce/blip-itm-base-coco")
        if self.layer < 0:
            raise UsageError(f"{self.layer} is not a layer", where="agla layer", remedy="count from 0")

    def files_for(self, pictures: Iterable[Path]) -> list[Path]:
        """Return the files of the model that masks."""
        return model_files(self.model)

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid, and load the BLIP model. Raises QkeditError."""
        return self.bound(summed(self.alpha), second_image(MatchingKept(self.model, self.layer), self.name))


def _check_model(model: str, name: str, what: str) -> None:
    if not model:
        raise UsageError(
            "no model is given", where=f"{name} model", remedy=f"give the directory or the hub id of {what}"
        )
