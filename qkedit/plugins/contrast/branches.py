"""The branches of contrasts: a second run of the model on reduced or altered inputs.

Each function returns a `StartOfBranch`, which is called at the beginning of every answer to prompts with images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qkedit.errors import UsageError
from qkedit.plugins.contrast.noise import with_noise
from qkedit.plugins.contrast.prompts import PER_TOKEN, with_sentence, without_images
from qkedit.plugins.contrast.second_images import SecondImages
from qkedit.plugins.contrast.selection import LeastAttended
from qkedit.plugins.contrast.text_selection import LeastAttendedText
from qkedit.plugins.core.decoding import Branch, Generation
from qkedit.plugins.core.grid import ImageGrids, image_grids
from qkedit.plugins.core.pictures import pictures_of

# The other arguments of `generate` that belong to a prompt's text; those that belong to images are dropped with them.
_OF_IMAGES = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "image_position_ids")


@dataclass(frozen=True)
class Begun:
    """A started branch.

    Attributes:
        branch: the branch.
        warnings: sentences to read before trusting the answer.
        contrasted: for each prompt, whether it is contrasted; None if all are.
    """

    branch: Branch
    warnings: tuple[str, ...] = ()
    contrasted: tuple[bool, ...] | None = None


StartOfBranch = Callable[[Generation], Begun]


def noisy_image(step: int, seed: int) -> StartOfBranch:
    """Return a branch with noise on its images; see `noise.with_noise`."""

    def start(generation: Generation) -> Begun:
        images = _images(generation)
        noised = {**images, "pixel_values": with_noise(images, generation.modules.config, step, seed)}
        return Begun(generation.start_branch({**_prompt(generation), **noised}))

    return start


def disturbed_prompt(sentence: Sequence[int]) -> StartOfBranch:
    """Return a branch with the tokens of a sentence after its last image."""

    def start(generation: Generation) -> Begun:
        prompt = with_sentence(generation.inputs, _grids(generation), sentence)
        return Begun(generation.start_branch({**prompt, **_images(generation)}))

    return start


def no_image() -> StartOfBranch:
    """Return a branch without images."""
    return lambda generation: Begun(
        generation.start_branch(without_images(generation.inputs, _grids(generation))),
    )


def least_attended_text(keep: Callable[[int], int], start: int) -> StartOfBranch:
    """Return a branch without images that keeps the text tokens with the least attention; see `LeastAttendedText`."""

    def begin(generation: Generation) -> Begun:
        inputs = without_images(generation.inputs, _grids(generation))
        edit = LeastAttendedText(inputs["attention_mask"], keep, start, len(generation.modules.layers))
        return Begun(generation.start_branch(inputs, edit))

    return begin


def least_attended(keep: float, start: int, name: str) -> StartOfBranch:
    """Return a branch that keeps the image tokens with the least attention; see `LeastAttended`."""

    def begin(generation: Generation) -> Begun:
        edit = LeastAttended(generation, keep, start, name)
        return Begun(generation.start_branch({**_prompt(generation), **_images(generation)}, edit), edit.warnings)

    return begin


def second_image(second: SecondImages, name: str) -> StartOfBranch:
    """Return a branch with other images in the same prompts; prompts without images are left alone."""

    def start(generation: Generation) -> Begun:
        pictures = pictures_of(generation.inputs)
        if pictures is None:
            raise UsageError(
                "the request has pixels, but not the pictures that they were made from",
                where=name,
                remedy="answer with qkedit.generate, or call remember_pictures (docs/rivals.md)",
            )
        device = generation.inputs["input_ids"].device
        questions = pictures.questions or [""] * len(pictures.images)
        inputs = pictures.inputs_with(
            [
                [second(picture, question, device) for picture in own]
                for own, question in zip(pictures.images, questions, strict=True)
            ]
        )
        return Begun(generation.start_branch(dict(inputs)), contrasted=tuple(map(bool, pictures.images)))

    return start


def _prompt(generation: Generation) -> dict[str, Any]:
    return {name: generation.inputs[name] for name in PER_TOKEN if generation.inputs.get(name) is not None}


def _images(generation: Generation) -> dict[str, Any]:
    return {name: generation.inputs[name] for name in _OF_IMAGES if generation.inputs.get(name) is not None}


def _grids(generation: Generation) -> ImageGrids:
    return image_grids(generation.modules.config, generation.inputs["input_ids"], generation.inputs)
