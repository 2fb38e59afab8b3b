#!/usr/bin/env python
"""Draw the figures of docs/demo.md: some scenes with the model's captions, and its training curves.

python scripts/demo_model/demo_pictures.py                       # into docs/images
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from demo_training.heldout import answers
from matplotlib.figure import Figure
from transformers import LlavaForConditionalGeneration

from qkedit.demo import demo_checkpoint
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes, mentions

ROOT = Path(__file__).resolve().parents[2]
SEED = 2_000_000


def scenes_picture(scenes: list[Scene], captions: list[str]) -> Figure:
    """Draw scenes in a grid of four columns, each above its caption; hallucinated objects are named in red."""
    figure, axes = plt.subplots(len(scenes) // 4, 4, figsize=(9, 2.75 * (len(scenes) // 4)), layout="constrained")
    for axis, scene, caption in zip(axes.flat, scenes, captions, strict=True):
        axis.imshow(scene.image)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title("\n".join(textwrap.wrap(caption, 30)), fontsize=8, loc="left")
        wrong = [kind for kind in mentions(caption) if kind not in scene.kinds]
        missing = [kind for kind in scene.kinds if kind not in mentions(caption)]
        notes = [f"not there: {', '.join(wrong)}"] if wrong else []
        notes += [f"left out: {', '.join(missing)}"] if missing else []
        axis.set_xlabel("; ".join(notes) or "right", fontsize=8, color="#b2182b" if wrong else "#444444")
    return figure


def training_picture(record: dict) -> Figure:
    """Draw the losses of both stages."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    titles = {"vision": "vision tower: what each patch shows", "language": "language model: captions and questions"}
    for axis, (stage, curve) in zip(axes, record["curves"].items(), strict=True):
        steps, losses = zip(*curve, strict=True)
        axis.semilogy(steps, losses, color="#2166ac")
        axis.set_title(titles[stage], fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("loss", fontsize=8)
        axis.tick_params(which="both", labelsize=7)
        axis.grid(which="both", alpha=0.25)
    axes[1].axhline(record["held_out"]["loss"], color="#b2182b", linestyle="--", linewidth=1)
    axes[1].annotate("held out", (0, record["held_out"]["loss"]), color="#b2182b", fontsize=8, va="bottom")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/demo.md.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="default: %(default)s")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = json.loads(
        (ROOT / "scripts" / "demo_model" / "demo_training" / "record.json").read_text(encoding="utf-8")
    )
    scenes = list(make_scenes(8, SEED))
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint())
    captions = answers(model, [(scene, CAPTION_PROMPT) for scene in scenes])
    for name, figure in (("scenes.jpg", scenes_picture(scenes, captions)), ("training.png", training_picture(record))):
        file = options.out / name
        figure.savefig(file, dpi=110)
        print(file)


if __name__ == "__main__":
    main()
