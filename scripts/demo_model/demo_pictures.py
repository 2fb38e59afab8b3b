#!/usr/bin/env python
"""Draw the figures of docs/demo.md: scenes of each world with captions of its model, training curves, and spectra.

python scripts/demo_model/demo_pictures.py                       # into docs/images
python scripts/demo_model/demo_pictures.py --table               # the table of spectra
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from demo_training.heldout import answers
from matplotlib.figure import Figure
from train_demo_model import RECORDS, SHIPPED
from transformers import LlavaForConditionalGeneration

from qkedit.demo import DEMO, DEMOS, SMALL_DEMO, demo_checkpoint
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes
from qkedit.demo.worlds import WORLDS
from qkedit.inspection.spectra import inspect
from qkedit.spectral.suppression import Suppression
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions

ROOT = Path(__file__).resolve().parents[2]
SEED = 2_000_000
SMOLLM = "SmolLM2-135M-Instruct"
COLOURS = {SMALL_DEMO: "#b2182b", DEMO: "#2166ac", SMOLLM: "#444444"}
# Top-4 share and effective rank of each layer, from the first.
Spectra = list[tuple[float, float]]


def scenes_picture(scenes: list[Scene], captions: list[str]) -> Figure:
    """Draw scenes in a grid of four columns, each above its caption; hallucinated objects are named in red."""
    lines = 2 if len(scenes[0].world.kinds) <= 16 else 8
    height = 2.45 + 0.15 * lines
    figure, axes = plt.subplots(len(scenes) // 4, 4, figsize=(9, height * (len(scenes) // 4)), layout="constrained")
    for axis, scene, caption in zip(axes.flat, scenes, captions, strict=True):
        axis.imshow(scene.image)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title("\n".join(textwrap.wrap(caption, 30 if lines == 2 else 34)), fontsize=8, loc="left")
        said = scene.world.mentions(caption)
        wrong = [kind for kind in said if kind not in scene.kinds]
        missing = [kind for kind in scene.kinds if kind not in said]
        notes = [f"not there: {', '.join(wrong)}"] if wrong else []
        notes += [f"left out: {', '.join(missing)}"] if missing else []
        note = "\n".join(textwrap.wrap("; ".join(notes) or ("right" if lines == 2 else "all kinds right"), 40))
        axis.set_xlabel(note, fontsize=8, color="#b2182b" if wrong else "#444444")
    return figure


def training_picture(record: dict[str, Any]) -> Figure:
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


def model_spectra(model: str) -> Spectra:
    """Return the spectra of an embedded model's layers: the mean share and the median rank over heads."""
    options = SteerOptions("all", suppression=Suppression(k=4), device="cpu")
    layers = [layer.heads for layer in inspect(plan_for(model, options)).layers]
    return [
        (fmean(head.energy_top_k for head in heads), median(head.effective_rank for head in heads)) for heads in layers
    ]


def published_spectra(document: str) -> Spectra:
    """Return the spectra of SmolLM2 by layer from the table of docs/laboratory.md, which real_weights.py writes."""
    table = document.partition("scripts/documents/real_weights.py: begin")[2]
    rows = re.findall(r"^\| \d+ \| \d+% \| \d+% \| (\d+)% \| \d+% \| ([\d.]+) \|", table, re.M)
    return [(int(share) / 100, float(rank)) for share, rank in rows]


def all_spectra() -> dict[str, Spectra]:
    """Return the spectra of the embedded models and of SmolLM2."""
    document = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    return {name: model_spectra(name) for name in DEMOS} | {SMOLLM: published_spectra(document)}


def spectra_picture(found: dict[str, Spectra]) -> Figure:
    """Draw top-4 share and effective rank over the depth of each model."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    for place, (axis, title) in enumerate(
        zip(axes, ("energy in the top four modes", "effective rank of a head's product"), strict=True)
    ):
        for name, layers in found.items():
            depths = [number / (len(layers) - 1) for number in range(len(layers))]
            values = [layer[place] for layer in layers]
            axis.plot(depths, values, color=COLOURS[name], marker=".", label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("depth: first layer to last", fontsize=8)
        axis.set_ylim(0, 1 if place == 0 else None)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8, loc=(0.5, 0.5))
    return figure


def spectra_table(found: dict[str, Spectra]) -> Iterator[str]:
    """Yield the lines of a Markdown table: the middle half of each model's layers."""
    yield "| model | middle layers | head size | top-4 share | effective rank |"
    yield "|---|---|--:|--:|--:|"
    sizes = {name: json.loads((demo_checkpoint(name) / "config.json").read_text()) for name in DEMOS}
    for name, layers in found.items():
        first, last = len(layers) // 4, len(layers) - len(layers) // 4 - 1
        shares, ranks = zip(*layers[first : last + 1], strict=True)
        size = sizes[name]["text_config"]["head_dim"] if name in sizes else 64
        yield (
            f"| {name} | {first}–{last} of {len(layers)} | {size} | {min(shares):.0%} to {max(shares):.0%} "
            f"| {min(ranks):.1f} to {max(ranks):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/demo.md.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="default: %(default)s")
    parser.add_argument("--world", nargs="+", choices=WORLDS, default=[*WORLDS], help="default: all")
    parser.add_argument("--table", action="store_true", help="print the table of spectra and draw nothing")
    options = parser.parse_args()
    found = all_spectra()
    if options.table:
        print("\n".join(spectra_table(found)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {"demo-spectra.png": spectra_picture(found)}
    for world in options.world:
        model_name, record_name = SHIPPED[world]
        record = json.loads((RECORDS / record_name).read_text(encoding="utf-8"))
        scenes = list(make_scenes(8, SEED, world=WORLDS[world]))
        model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint(model_name))
        captions = answers(model, [(scene, CAPTION_PROMPT) for scene in scenes])
        pictures[f"scenes-{world}.jpg"] = scenes_picture(scenes, captions)
        pictures[f"training-{world}.png"] = training_picture(record)
    for name, figure in pictures.items():
        file = options.out / name
        figure.savefig(file, dpi=110)
        print(file)


if __name__ == "__main__":
    main()
