#!/usr/bin/env python
"""Compare short trainings that differ in one setting each: which gives query-key spectra like a large model's?

Each trial trains projector and language model from scratch on a finished vision tower. Then it measures the spectra of
the middle half of the layers, loss and behaviour on held-out scenes, and the effect of the dominant modes: the loss
without them, and the loss without as many random ones. Rows are appended to a JSON-lines file, from which `--table`
makes the table of docs/demo.md; the rows of that table are in demo_training/trials.jsonl.

    python scripts/demo_model/spectrum_trials.py --work /tmp/trials --run muon "unit init"   # these trials
    python scripts/demo_model/spectrum_trials.py --work /tmp/trials --table            # what was found
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from demo_training import checkpoint
from demo_training.data import RenderedScenes, render
from demo_training.heldout import measure
from demo_training.orthogonal import HeadwiseMuon
from demo_training.spectra import initialise, middle_layers, projections, spectra, without_modes
from demo_training.stages import LanguageStage, Settings, learning_rate
from transformers import LlavaConfig, LlavaForConditionalGeneration

from qkedit.demo import SMALL_DEMO, demo_checkpoint

HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Trial:
    """The settings of a trial; the defaults take a few minutes on one core.

    Attributes:
        name: the name in the table.
        layers, hidden, mlp, query_heads, key_heads, head_size: the sizes of the language model.
        qk_std: standard deviation of the initial query and key weights; 0 means `hidden ** -0.5`.
        qk_optimizer: "adam" or "muon".
        qk_rate: learning rate of query and key weights in units of the others'.
        qk_decay: their weight decay.
        rate, steps, batch: as in `Settings`.
    """

    name: str
    layers: int = 3
    hidden: int = 96
    mlp: int = 192
    query_heads: int = 4
    key_heads: int = 2
    head_size: int = 64
    qk_std: float = 0.02
    qk_optimizer: str = "adam"
    qk_rate: float = 1.0
    qk_decay: float = 0.05
    rate: float = 1.5e-3
    steps: int = 1000
    batch: int = 16


_BASE = Trial("head size 64")
_PLANNED = [
    _BASE,
    replace(_BASE, name="unit init", qk_std=0.0),
    replace(_BASE, name="unit init slow", qk_std=0.0, qk_rate=0.2),
    replace(_BASE, name="muon", qk_optimizer="muon"),
    replace(_BASE, name="muon unit init", qk_optimizer="muon", qk_std=0.0),
    replace(_BASE, name="muon unit init no decay", qk_optimizer="muon", qk_std=0.0, qk_decay=0.0),
    replace(_BASE, name="head size 32", head_size=32, query_heads=8),
    replace(_BASE, name="head size 128", head_size=128, query_heads=2),
]
TRIALS = {trial.name: trial for trial in _PLANNED}


def new_model(trial: Trial, seed: int) -> LlavaForConditionalGeneration:
    """Return the model of a trial with random weights and the shipped vision tower."""
    content = checkpoint.side_files(checkpoint.build_tokenizer())["config.json"]
    content["text_config"] |= {
        "hidden_size": trial.hidden,
        "intermediate_size": trial.mlp,
        "num_hidden_layers": trial.layers,
        "num_attention_heads": trial.query_heads,
        "num_key_value_heads": trial.key_heads,
        "head_dim": trial.head_size,
    }
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(LlavaConfig.from_dict(content)).float()


def train(trial: Trial, stage: LanguageStage, curves: Path) -> None:
    """Train a stage, and append loss and spectra to a file every 50 steps."""
    qk = [weight for layer in projections(stage.language_model) for weight in layer]
    known = set(map(id, qk))
    others = [p for p in stage.modules.parameters() if id(p) not in known]
    adam = [{"params": others, "weight_decay": 0.05, "factor": 1.0}]
    of_qk = {"params": qk, "weight_decay": trial.qk_decay, "factor": trial.qk_rate}
    optimizers: list[torch.optim.Optimizer] = []
    if trial.qk_optimizer == "muon":
        optimizers.append(HeadwiseMuon([of_qk], lr=0.0, head_size=trial.head_size))  # type: ignore[list-item]
    else:
        adam.append(of_qk)
    optimizers.append(torch.optim.AdamW(adam, betas=(0.9, 0.98)))
    losses: list[float] = []
    for step in range(trial.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * learning_rate(step, trial.steps, trial.rate)
        stage.modules.zero_grad()
        loss = stage.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            found = spectra(stage.language_model, middle_layers(trial.layers))
            point = {"name": trial.name, "step": step + 1, "loss": float(np.mean(losses[-50:])), **found}
            with curves.open("a", encoding="utf-8") as out:
                out.write(json.dumps(point) + "\n")
            print(point, flush=True)


def run(trial: Trial, data: RenderedScenes, held_out: RenderedScenes, seed: int, curves: Path) -> dict:
    """Train a trial on scenes, measure it on held-out ones, and return its row."""
    started = time.monotonic()
    settings = Settings(
        seed=seed,
        scenes=len(data.kinds),
        language_steps=trial.steps,
        language_batch=trial.batch,
        language_rate=trial.rate,
    )
    model = new_model(trial, seed)
    shipped = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint(SMALL_DEMO), dtype=torch.float32)
    model.model.vision_tower.load_state_dict(shipped.model.vision_tower.state_dict())
    initialise(model.model.language_model, trial.qk_std or trial.hidden**-0.5, seed)
    before = spectra(model.model.language_model, middle_layers(trial.layers))
    stage = LanguageStage(model, data, settings)
    train(trial, stage, curves)
    minutes = (time.monotonic() - started) / 60
    middle = middle_layers(trial.layers)
    loss = stage.loss_on(held_out)
    cost = {}
    for which in ("top", "random"):
        with without_modes(model.model.language_model, middle, 4, which):
            cost[f"loss_without_{which}_4"] = stage.loss_on(held_out)
    behaviour = measure(model, len(held_out.kinds), HELD_OUT_SEED)
    return {
        **asdict(trial),
        **{f"initial_{name}": value for name, value in before.items()},
        **spectra(model.model.language_model, middle),
        "loss": loss,
        **cost,
        **behaviour,
        "minutes": minutes,
    }


COLUMNS = {
    "layers": "layers",
    "hidden": "hidden",
    "head_size": "head size",
    "qk_std": "initial std",
    "qk_optimizer": "optimizer of q, k",
    "qk_rate": "rate",
    "qk_decay": "decay",
    "steps": "steps",
    "top_4": "top-4 share",
    "effective_rank": "effective rank",
    "loss": "loss",
    "loss_without_top_4": "without top 4",
    "loss_without_random_4": "without random 4",
    "recall": "recall",
    "pope_adversarial_hr": "adversarial HR",
}


def table(rows: list[dict]) -> str:
    """Return finished trials as a Markdown table."""
    return _markdown(["trial", *COLUMNS.values()], [[row["name"], *(row[name] for name in COLUMNS)] for row in rows])


def curve_table(points: list[dict]) -> str:
    """Return the figures of each trial after every hundred steps as a Markdown table."""
    cells = [
        [point["name"], point["step"], point["loss"], point["top_4"], point["effective_rank"]]
        for point in points
        if point["step"] % 100 == 0
    ]
    return _markdown(["trial", "step", "loss", "top-4 share", "effective rank"], cells)


def rows_of(file: Path) -> list[dict]:
    """Return the rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _markdown(titles: list[str], rows: list[list[object]]) -> str:
    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Try recipes for query and key weights of full rank.")
    parser.add_argument("--work", type=Path, required=True, help="directory of the measured rows")
    parser.add_argument("--run", nargs="+", choices=TRIALS, metavar="TRIAL", help=f"which: {', '.join(TRIALS)}")
    parser.add_argument("--table", action="store_true", help="print the table of all rows")
    parser.add_argument("--scenes", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--held-out", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    for field in fields(Trial):
        if field.name != "name":
            parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), help="for all trials")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file, curves = options.work / "trials.jsonl", options.work / "curves.jsonl"
    if options.run:
        given = {f.name: getattr(options, f.name, None) for f in fields(Trial) if f.name != "name"}
        given = {name: value for name, value in given.items() if value is not None}
        torch.set_num_threads(1)
        data, held_out = render(options.scenes, 0, 1), render(options.held_out, HELD_OUT_SEED, 1)
        for name in options.run:
            row = run(replace(TRIALS[name], **given), data, held_out, options.seed, curves)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(table([row]), flush=True)
    if options.table:
        for of, made in ((curves, curve_table), (file, table)):
            if of.exists():
                print(made(rows_of(of)), end="\n\n")


if __name__ == "__main__":
    main()
