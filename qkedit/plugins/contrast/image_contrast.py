"""Contrast with a second image that the user provides, and the weighted sum with it.

With l the logits for the picture, and l′ those for the same prompt with the second image:

    image-contrast    (1 + α) l − α l′     the formula of VCD, which OA-VCD (arXiv 2602.11737) takes over: the second
                                           image lacks what the answer should be about
    image-sum         l + α l′             AGLA (arXiv 2406.12718): the second image shows only what the question is
                                           about

where l ≥ log β + max l, else −∞.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from qkedit.errors import UsageError
from qkedit.plugins.contrast.branches import second_image
from qkedit.plugins.contrast.plugin import BoundContrast, Weights
from qkedit.plugins.contrast.second_images import ByFileName, Provider, provider_of
from qkedit.plugins.contrast.settings import ContrastSettings, constant
from qkedit.plugins.core.modules import VLMModules


@dataclass(frozen=True)
class ImageContrast(ContrastSettings):
    """Settings of the contrast with a second image.

    Attributes:
        second: the second images: one image for all pictures; a directory with images of the same names; JSON lines
            `{"image": "street.jpg", "second": "masked/street.png"}`; or in Python a function from a picture to its
            second image.
        alpha: α, the weight of the branch; with 0 there is no branch, and only the plausibility cut is left.
        beta: β, the plausibility cut: tokens less likely than β times the likeliest one are excluded; 0 for no cut.
        control: as in VCD.
    """

    name: ClassVar[str] = "image-contrast"
    reads_pictures: ClassVar[bool] = True

    second: str | Path | Provider = ""
    alpha: float = 1.0
    beta: float = 0.1
    control: int | None = None

    def __post_init__(self) -> None:
        """Check the settings and find the second images. Raises UsageError."""
        super().__post_init__()
        _ = self.provider  # found now, before a model is loaded

    @cached_property
    def provider(self) -> Provider:
        """The function from a picture to its second image."""
        return provider_of(self.second, f"{self.name} second")

    def check_files(self, files: Iterable[Path] | None) -> None:
        """Check that each file of a picture has a second image of its own. Raises UsageError."""
        if not isinstance(provider := self.provider, ByFileName):
            return
        if files is None:
            raise provider.unnamed()
        taken: dict[Path, Path] = {}
        for picture in files:
            end, second = provider.file(picture)
            if not second.is_file():
                raise UsageError(f"{second} is not a file", where=provider.where, remedy="add it")
            if (other := taken.setdefault(end, picture)) != picture:
                raise UsageError(
                    f"{other} and {picture} would share one second image",
                    where=provider.where,
                    remedy=f"give {picture.parent.name}/{picture.name} one of its own",
                )

    def files_for(self, pictures: Iterable[Path]) -> list[Path]:
        """Return the file of each picture's second image, or the one file of all; none for a function."""
        if isinstance(provider := self.provider, ByFileName):
            return [provider.file(picture)[1] for picture in pictures]
        return [Path(self.second).expanduser()] if isinstance(self.second, str | Path) else []

    def bind(self, modules: VLMModules) -> BoundContrast:
        """Take a model whose images are a grid."""
        branch = second_image(lambda picture, question, device: self.provider(picture), self.name)
        return self.bound(self._weights(), branch)

    def _weights(self) -> Weights | None:
        return constant(self.alpha)


@dataclass(frozen=True)
class ImageSum(ImageContrast):
    """Settings of the sum with a second image.

    Attributes:
        second, control: as in the contrast.
        alpha: α, the weight of the second image's logits.
        beta: β, the plausibility cut, by the logits for the picture itself.
    """

    name: ClassVar[str] = "image-sum"

    alpha: float = 2.0
    beta: float = 0.5

    def _weights(self) -> Weights | None:
        return summed(self.alpha)


def summed(alpha: float) -> Weights | None:
    """Return the weights of l + α l′; None for α = 0, which needs no branch."""
    return (lambda step: (1.0, alpha)) if alpha > 0 else None
