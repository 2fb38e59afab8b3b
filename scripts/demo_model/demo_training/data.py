"""Training data: rendered scenes, the objects in each patch, and conversations packed after one picture.

A picture takes 64 tokens and a question about 15, so one picture serves a caption and several questions at once. Each
of them is a branch: its positions continue those of the picture, and it attends to the picture and to itself, but not
to other branches. So a packed sequence is equivalent to single requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from demo_training.attention import PackedLayout
from demo_training.checkpoint import GRID, IMAGE, PATCH_SIZE
from qkedit.demo.questions import attribute_questions
from qkedit.demo.scenes import CAPTION_PROMPT, IMAGE_SIZE, make_scene, question
from qkedit.demo.world import World
from qkedit.demo.worlds import SMALL, WORLDS

# Questions per scene and step: half of them about objects that the scene shows, and one more about a colour or number
# in worlds whose captions name these.
QUESTIONS = 4
IGNORED = -100
# CLIP's, as in the processor's configuration.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class RenderedScenes:
    """Scenes as arrays.

    Attributes:
        images: uint8 `[N, H, W, 3]`.
        patches: bool `[N, tokens, kinds + colours]`, whether a patch shows a large enough part of a kind or colour.
        kinds: the kinds of objects in each scene, from front to back.
        captions: one per scene.
        attributes: the questions about colours and numbers of each scene, with their answers.
        world: their world.
    """

    images: np.ndarray
    patches: np.ndarray
    kinds: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...]
    attributes: tuple[tuple[tuple[str, str], ...], ...] = ()
    world: World = SMALL


def patch_labels(world: World) -> tuple[str, ...]:
    """Return what a patch can show: the kinds of objects, then the colours."""
    return (*world.kinds, *world.colour_names)


def render(count: int, seed: int, processes: int, world: World = SMALL) -> RenderedScenes:
    """Render scenes 0 … count − 1 of a seed."""
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(partial(_render_one, world.name, seed), range(count), chunksize=250))
    images, patches, kinds, captions, attributes = zip(*parts, strict=True)
    return RenderedScenes(np.stack(images), np.stack(patches), kinds, captions, attributes, world)


def _render_one(
    world: str, seed: int, number: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], str, tuple[tuple[str, str], ...]]:
    scene = make_scene(seed, number, WORLDS[world])
    labels = patch_labels(scene.world)
    patches = np.zeros((GRID, GRID, len(labels)), dtype=bool)
    for index, thing in enumerate(scene.objects):
        shown = scene.instances == index
        pixels = shown.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).sum((1, 3))
        enough = (pixels > 0) & ((pixels >= 0.12 * PATCH_SIZE**2) | (pixels >= 0.3 * shown.sum()))
        for label in (thing.kind, thing.colour) if thing.colour else (thing.kind,):
            patches[..., labels.index(label)] |= enough
    return (
        scene.image,
        patches.reshape(GRID * GRID, -1),
        scene.kinds,
        scene.caption,
        tuple(attribute_questions(scene)),
    )


def pixel_values(images: np.ndarray) -> torch.Tensor:
    """Return uint8 pictures `[B, H, W, 3]` as the processor does, float32 `[B, 3, H, W]`."""
    assert images.shape[1:3] == (IMAGE_SIZE, IMAGE_SIZE)
    return ((torch.from_numpy(images).float() / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Packed:
    """A batch of packed conversations: the picture, a caption, then the questions, each padded to a common length.

    Attributes:
        input_ids: `[B, T]`.
        labels: `[B, T]`, the next token if it belongs to an answer, else `IGNORED`.
        positions: `[1, T]`; those of each branch continue the picture's.
        layout: the parts of the T tokens.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    layout: PackedLayout


class Packer:
    """Pack a caption and questions after the image of each scene."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, world: World = SMALL) -> None:
        self._tokenizer, self._world = tokenizer, world
        self.questions = QUESTIONS + bool(world.colours)
        self._known: dict[str, list[int]] = {}
        self.prefix = self._ids(f"<s>USER: {IMAGE * GRID**2}\n")

    def __call__(
        self, data: RenderedScenes, chosen: Sequence[int], generator: np.random.Generator, missing: float = 0.0
    ) -> Packed:
        """Pack scenes of the data, by position; the generator chooses their questions.

        In the share `missing` of scenes, one of the absent kinds belongs to the place of an object that they show.
        """
        described = self._padded([self._branch(CAPTION_PROMPT, data.captions[scene]) for scene in chosen])
        turns = [turn for scene in chosen for turn in self._questions(data, scene, generator, missing)]
        asked = self._padded([self._branch(*turn) for turn in turns]).reshape(len(chosen), self.questions, 2, -1)
        prefix = torch.tensor([self.prefix, [IGNORED] * len(self.prefix)]).expand(len(chosen), -1, -1)
        layout = PackedLayout(len(self.prefix), described.shape[-1], asked.shape[-1])
        both = torch.cat([prefix, described, asked.transpose(1, 2).flatten(2)], dim=-1)
        positions = [
            torch.arange(layout.prefix),
            layout.prefix + torch.arange(layout.caption),
            (layout.prefix + torch.arange(layout.question)).repeat(self.questions),
        ]
        return Packed(both[:, 0], both[:, 1], torch.cat(positions)[None], layout)

    def _questions(
        self, data: RenderedScenes, scene: int, generator: np.random.Generator, missing: float
    ) -> list[tuple[str, str]]:
        shown = data.kinds[scene]
        absent = [kind for kind in self._world.kinds if kind not in shown]
        asked = [
            *((kind, "Yes.") for kind in generator.choice(shown, QUESTIONS // 2)),
            *((kind, "No.") for kind in generator.choice(absent, QUESTIONS // 2)),
        ]
        if missing and generator.random() < missing:
            beside = generator.choice(shown)
            place = next(kinds for kinds in self._world.themes.values() if beside in kinds)
            asked[-1] = (generator.choice([kind for kind in place if kind not in shown] or absent), "No.")
        turns = [(question(str(kind)), answer) for kind, answer in asked]
        if self._world.colours:
            words, answer = data.attributes[scene][generator.integers(len(data.attributes[scene]))]
            turns.append((words, f"{answer}."))
        return turns

    def _branch(self, asked: str, answer: str) -> tuple[list[int], list[int]]:
        """Return ids and labels of one branch; from the prompt's last token on, the label is the next token."""
        prompt, reply = self._ids(f"{asked} ASSISTANT:"), self._ids(f" {answer}</s>")
        return prompt + reply, [IGNORED] * (len(prompt) - 1) + reply + [IGNORED]

    def _padded(self, branches: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """Return ids and labels `[N, 2, longest]`; padding is last, so that no token attends to it."""
        longest = max(len(ids) for ids, _ in branches)
        fill = (self._tokenizer.pad_token_id, IGNORED)
        return torch.tensor(
            [[part + [fill[i]] * (longest - len(part)) for i, part in enumerate(branch)] for branch in branches]
        )

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]
