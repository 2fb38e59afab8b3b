"""The images that a diagnosis asks about: files or scenes of the miniature world, with the objects that they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.demo.scenes import Scene
from qkedit.errors import UsageError, counted
from qkedit.evaluation.benchmarks.chair.mentions import Mention, MentionFinder, mention_finder
from qkedit.images import read_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PromptImages:
    """The images of one prompt.

    Attributes:
        name: the name in reports, and that of the group of items that are not independent.
        sources: image files, or images.
        truth: the objects that they show; None if they are not known.
    """

    name: str
    sources: tuple[Path | Image, ...]
    truth: tuple[str, ...] | None = None

    def images(self) -> tuple[Image, ...]:
        """Return the images. Raises UsageError for a file that is not one."""
        return tuple(read_image(one) if isinstance(one, Path) else one for one in self.sources)


@dataclass(frozen=True)
class AskedImages:
    """The images of all prompts, and the function that finds mentions in answers; None without ground truth."""

    prompts: tuple[PromptImages, ...]
    find: MentionFinder | None = None


def of_files(
    prompts: Sequence[Sequence[Path]], data: Path | None = None, split: str | None = None, variant: str = "official"
) -> AskedImages:
    """Return image files with CHAIR's ground truth, which is found by the name of the file.

    Args:
        prompts: the files of each prompt. Several images in one prompt show the objects of all of them together.
        data: CHAIR's ground truth, as `qkedit score chair --data` takes it; None to measure without mentions.
        split: the part of the ground truth.
        variant: CHAIR's variant.

    Raises:
        UsageError: no file is an image of the ground truth, or there is no such split or variant.
        QkeditError: a file is missing or broken, or a language library is missing.
    """
    named = [(" + ".join(file.name for file in files), tuple(files)) for files in prompts]
    if data is None:
        return AskedImages(tuple(PromptImages(name, files) for name, files in named))
    from qkedit.evaluation.benchmarks.chair.scoring import load_questions, load_synonyms

    objects_of = {}
    for question in load_questions(data, split, variant=variant):
        objects_of[question.image] = objects_of[Path(question.image).stem] = question.truth
    prompt_images = []
    for name, files in named:
        truths = [objects_of.get(file.name, objects_of.get(file.stem)) for file in files]
        known = [objects for objects in truths if objects is not None]
        together = dict.fromkeys(name for objects in known for name in objects)
        prompt_images.append(PromptImages(name, files, tuple(together) if len(known) == len(files) else None))
    if not any(shown.truth is not None for shown in prompt_images):
        raise UsageError(
            f"knows none of the {counted(len(prompt_images), 'image')}",
            where=str(data),
            remedy="name images of the ground truth, by the names of their files",
        )
    directory = data.parent if data.is_file() else data
    return AskedImages(tuple(prompt_images), mention_finder(load_synonyms(directory), variant, directory))


def of_scenes(scenes: Iterable[Scene]) -> AskedImages:
    """Return scenes of one miniature world, in whose captions the kinds of objects themselves are mentions."""
    from PIL import Image

    scenes = tuple(scenes)
    world = scenes[0].world

    def find(caption: str) -> tuple[Mention, ...]:
        return tuple(Mention(*found) for found in world.mention_spans(caption))

    return AskedImages(
        tuple(PromptImages(f"scene {scene.number}", (Image.fromarray(scene.image),), scene.kinds) for scene in scenes),
        find,
    )
