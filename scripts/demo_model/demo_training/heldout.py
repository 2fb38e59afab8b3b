"""Measure the trained model on held-out scenes, for the record and the model card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from demo_training.checkpoint import GRID, IMAGE, SIZES, fast_tokenizer
from demo_training.data import pixel_values
from qkedit.demo.questions import SPLITS, attribute_questions, image_file, pope_questions
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes
from qkedit.demo.world import World
from qkedit.demo.worlds import SMALL

BATCH = 100


def measure(model: LlavaForConditionalGeneration, count: int, seed: int, world: World = SMALL) -> dict[str, float]:
    """Return recall, CHAIR and POPE of the model on scenes 0 … count − 1 of a seed, by greedy search.

    In a world with colours and numbers, also return the shares of right answers about them, and the captions' length.
    """
    scenes = list(make_scenes(count, seed, world=world))
    captions = answers(model, [(scene, CAPTION_PROMPT) for scene in scenes])
    said = [world.mentions(caption) for caption in captions]
    wrong = [[kind for kind in found if kind not in scene.kinds] for found, scene in zip(said, scenes, strict=True)]
    covered = sum(len(set(found) & set(scene.kinds)) for found, scene in zip(said, scenes, strict=True))
    figures = {
        "recall": covered / sum(len(scene.kinds) for scene in scenes),
        "chair_s": sum(map(bool, wrong)) / count,
        "chair_i": sum(map(len, wrong)) / max(1, sum(map(len, said))),
    }
    by_image = {image_file(scene): scene for scene in scenes}
    for split in SPLITS:
        rows = pope_questions(scenes, split)
        replies = answers(model, [(by_image[row["image"]], row["text"]) for row in rows])
        yes = [reply.startswith("Yes") for reply in replies]
        truth = [row["label"] == "yes" for row in rows]
        figures[f"pope_{split}_accuracy"] = sum(a == b for a, b in zip(yes, truth, strict=True)) / len(rows)
        negatives = [said_yes for said_yes, true in zip(yes, truth, strict=True) if not true]
        figures[f"pope_{split}_hr"] = sum(negatives) / len(negatives)
    if world.colours:
        figures |= _attribute_figures(model, scenes)
        figures["caption_words"] = float(np.mean([len(caption.split()) for caption in captions]))
    return {name: round(value, 4) for name, value in figures.items()}


def _attribute_figures(model: LlavaForConditionalGeneration, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the shares of right answers about colours and about numbers."""
    asked = [(scene, *turn) for scene in scenes for turn in attribute_questions(scene)]
    replies = answers(model, [(scene, words) for scene, words, _ in asked])
    right = {"colour": [], "number": []}  # type: dict[str, list[bool]]
    for (_, words, answer), reply in zip(asked, replies, strict=True):
        right["colour" if "colour" in words else "number"].append(reply == f"{answer}.")
    return {f"{name}_accuracy": float(np.mean(found)) for name, found in right.items()}


def answers(model: LlavaForConditionalGeneration, asked: Sequence[tuple[Scene, str]]) -> list[str]:
    """Return the model's greedy answers to prompts about scenes of one world."""
    world = asked[0][0].world
    tokenizer = fast_tokenizer(world)
    tokenizer.padding_side = "left"
    model.eval()
    model.set_attn_implementation({"text_config": "sdpa"})
    said = []
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        texts = [f"<s>USER: {IMAGE * GRID**2}\n{prompt} ASSISTANT:" for _, prompt in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        pixels = torch.cat([pixel_values(scene.image[None]) for scene, _ in batch]).to(model.dtype)
        with torch.no_grad():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=pixels,
                max_new_tokens=SIZES[world.name].answer_tokens,
                do_sample=False,
            )
        said += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def results_table(measured: dict[str, float], count: int) -> str:
    """Return the held-out figures as a Markdown table."""
    rows = [f"| {name} | {value:.3f} |" for name, value in measured.items()]
    return "\n".join([f"On {count} held-out scenes (greedy search):", "", "| | |", "|---|---|", *rows])
