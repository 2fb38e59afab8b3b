#!/usr/bin/env python
"""Measure what plug-ins do to a model's states and keys: the tables of docs/plugins.md.

    python scripts/benchmarks/measure_plugins.py

* SCR: by layer, the sum of the image tokens' norms with it, divided by that without it, on the demo model's scenes;
* DSCR's published kernel on a synthetic scene: the effective number of tokens per mix, and the variance kept;
* the same on the demo model with the scenes' true depth, and on tiny models with random weights and four depth maps:
  the source of the thresholds of DSCR's warnings;
* KV-coherence of the demo model's keys before and after DSCR.

Prints Markdown; takes about a minute. It borrows the tiny models of `tests`, so it runs in a source checkout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import qkedit
from qkedit import DSCR, SCR
from qkedit.demo import SMALL_DEMO
from qkedit.demo.scenes import CAPTION_PROMPT, Scene, make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.plugins.dscr.mixing import Kernel, effective_tokens, mixed, mixing_weights, standardized, variance
from qkedit.plugins.measures.kv_coherence import KeyCoherence
from qkedit.runtime.generation import LoadedModel, load, request_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.plugins import tiny_requests
from tests.plugins.dscr.dscr_requests import UNCROPPED, images_in, prompts_of, request_of

SEED = 20
TINY = ("llava", "qwen2-vl", "internvl", "llava-next", "chameleon")
UNITS = {"z-scores": True, "0 … 1": False}  # whether depth is standardized


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=64)
    scenes = list(make_scenes(parser.parse_args(arguments).scenes, SEED, world=SMALL))
    print(f"{date.today()}, torch {torch.__version__}, float32, {len(scenes)} scenes of seed {SEED}")
    demo = load(SMALL_DEMO, dtype="float32")
    for section in (norm_ratios(demo, scenes), kernel(), mixes(demo, scenes), coherence(demo, scenes)):
        print()
        print("\n".join(section), flush=True)


def norm_ratios(demo: LoadedModel, scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield the norm ratios of SCR with its defaults and of its control: the mean over the scenes, with the range."""
    for number, selection in enumerate(("attention", "uniform")):
        reports = [report["scr"] for report in reports_of(demo, scenes, SCR(selection=selection, measure=True))]
        layers = list(reports[0].norm_ratio)
        if number == 0:
            yield f"| selection | {' | '.join(f'layer {layer}' for layer in layers)} | entropy, without → with |"
            yield "|---" * (len(layers) + 2) + "|"
        ratios = [spread([report.norm_ratio[layer] for report in reports], "{:.3f}") for layer in layers]
        entropies = [
            statistics.mean(getattr(report, name) for report in reports) for name in ("entropy_unedited", "entropy")
        ]
        yield f"| {selection} | {' | '.join(ratios)} | {entropies[0]:.3f} → {entropies[1]:.3f} |"


def kernel() -> Iterator[str]:
    """Yield the figures of the published kernel on a receding floor with an object; half of the keys follow depth."""
    depth = torch.linspace(0, 1, 24)[:, None].repeat(1, 24)
    depth[8:18, 8:16] = 0.9
    depth = depth.flatten()
    generator = torch.Generator().manual_seed(0)
    along = standardized(depth)[:, None] * torch.randn(4, 1, 64, generator=generator)
    keys = (along + torch.randn(4, 576, 64, generator=generator)).transpose(0, 1)
    places = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    yield "| depth | effective tokens mixed, of 575 | variance among keys kept |"
    yield "|---|---|---|"
    for name, values in (("0 … 1", depth), ("0 … 5", 5 * depth), ("z-scores", standardized(depth))):
        weights = mixing_weights(values, places, Kernel())
        kept = variance(mixed(weights[None], keys[None])[0]) / variance(keys)
        yield f"| {name} | {effective_tokens(weights):.0f} | {kept:.1%} |"


def mixes(demo: LoadedModel, scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield the range of the share of other tokens in a mix, and of the variance kept."""
    yield "| model | share mixed, z-scores | depth in 0 … 1 | variance kept, z-scores | depth in 0 … 1 |"
    yield "|---|---|---|---|---|"
    found = {
        unit: [
            report["dscr"]
            for scene in scenes
            for report in reports_of(demo, [scene], DSCR(depth=unit_range(scene.depth), standardize=standardize))
        ]
        for unit, standardize in UNITS.items()
    }
    yield mixes_line("demo-small, true depth", found)
    for family in TINY:
        tiny, request = tiny_requests.model(family), request_of(family, prompts_of(family))
        found = {}
        for unit, standardize in UNITS.items():
            found[unit] = []
            for depth in depth_maps(scenes[0]).values():
                plugin = DSCR(depth=[depth] * images_in(request), standardize=standardize, processor=UNCROPPED)
                with torch.no_grad(), qkedit.attach(tiny, plugin) as attached:
                    tiny(**request.inputs)
                found[unit].append(attached.report()[0].plugins["dscr"])
        yield mixes_line(f"tiny {family}, random", found)


def mixes_line(name: str, found: Mapping[str, Sequence[Any]]) -> str:
    cells = [
        f"{min(values):.1%} … {max(values):.1%}"
        for what in ("share_mixed", "variance_kept")
        for values in ([getattr(report, what) for report in found[unit]] for unit in UNITS)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def coherence(demo: LoadedModel, scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield KV-coherence by layer, mean over heads and scenes, without DSCR and with it."""
    columns = []
    for refined in (False, True):
        by_scene = [
            [layer.coherence for layer in report["coherence"].layers]
            for scene in scenes
            for report in reports_of(
                demo, [scene], *([DSCR(depth=torch.from_numpy(scene.depth))] if refined else []), KeyCoherence()
            )
        ]
        columns.append([statistics.mean(values) for values in zip(*by_scene, strict=True)])
    yield f"| KV-coherence | {' | '.join(f'layer {layer}' for layer in range(len(columns[0])))} |"
    yield "|---" * (len(columns[0]) + 1) + "|"
    for name, values in zip(("without", "with dscr"), columns, strict=True):
        yield f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"


def reports_of(demo: LoadedModel, scenes: Sequence[Scene], *plugins: Any) -> list[Mapping[str, Any]]:
    """Return the plug-ins' reports on the caption prompt about each scene."""
    with torch.no_grad(), qkedit.attach(demo.model, *plugins) as attached:
        for scene in scenes:
            demo.model(**request_inputs(demo, [Image.fromarray(scene.image)], CAPTION_PROMPT))
    return [report.plugins for report in attached.report()]


def depth_maps(scene: Scene) -> dict[str, Tensor]:
    """Return four depth maps in 0 … 1: a scene, a wall above a floor, noise, and a disparity map."""
    planes = torch.cat([torch.ones(60), torch.linspace(1, 0, 60)])[:, None].repeat(1, 120)
    noise = torch.rand(120, 120, generator=torch.Generator().manual_seed(0))
    recedes = torch.linspace(1, 10, 120)[:, None].repeat(1, 120)
    return {
        "scene": unit_range(scene.depth),
        "planes": planes,
        "noise": noise,
        "disparity": unit_range(recedes.reciprocal()),
    }


def unit_range(depth: Any) -> Tensor:
    values = torch.as_tensor(depth, dtype=torch.float32)
    return (values - values.min()) / (values.max() - values.min())


def spread(values: Sequence[float], how: str) -> str:
    return f"{how} ({how} … {how})".format(statistics.mean(values), min(values), max(values))


if __name__ == "__main__":
    main(sys.argv[1:])
