#!/usr/bin/env python
"""Train the miniature model of `--model demo` from scratch on its own scenes.

There are two stages: the vision tower learns the kinds of objects in each patch, then projector and language model
learn captions and short questions. The result depends only on the settings, the library versions and the machine's
arithmetic. The run saves its state every few minutes, and resumes from there when it is started again.

    python scripts/demo_model/train_demo_model.py --work /tmp/demo             # train; resumes
    python scripts/demo_model/train_demo_model.py --work /tmp/demo --install   # and replace the shipped checkpoint
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from demo_training.checkpoint import new_model, write_side_files, write_text
from demo_training.data import RenderedScenes, render
from demo_training.heldout import measure, results_table
from demo_training.published_names import rename_tensors
from demo_training.stages import LanguageStage, Settings, VisionStage, learning_rate
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qkedit.demo import demo_checkpoint

RECORD = Path(__file__).resolve().parent / "demo_training" / "record.json"
HELD_OUT_SEED = 1_000_000  # far from any training seed; the laboratory uses different ones
CURVE_EVERY = 50
SAVE_EVERY = 250


@dataclass(frozen=True)
class Trained:
    """A finished stage: its curve (step, mean loss of the last 50 steps) and the minutes of all its runs."""

    curve: list[tuple[int, float]]
    minutes: float


def train(stage: VisionStage | LanguageStage, work: Path, until: float) -> Trained | None:
    """Run a stage from its last saved state; return None if time ran out."""
    state_file = work / f"{stage.name}.pt"
    optimizer = torch.optim.AdamW(stage.modules.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    curve: list[tuple[int, float]] = []
    first, seconds, started = 0, 0.0, time.monotonic()
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        stage.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        curve, first, seconds = state["curve"], state["step"], state["seconds"]
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        task = progress.add_task(stage.name, total=stage.steps, completed=first, loss=float("nan"))
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, stage.steps, stage.rate)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = stage.loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.modules.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            done = step + 1
            if done % CURVE_EVERY == 0:
                curve.append((done, sum(losses[-CURVE_EVERY:]) / CURVE_EVERY))
                progress.update(task, loss=curve[-1][1])
                if not progress.console.is_terminal:
                    print(f"{stage.name} {done}/{stage.steps} loss {curve[-1][1]:.4f}", flush=True)
            progress.update(task, completed=done)
            if done % SAVE_EVERY == 0 or done == stage.steps:
                state = {"modules": stage.modules.state_dict(), "optimizer": optimizer.state_dict()}
                passed = seconds + time.monotonic() - started
                _save({**state, "curve": curve, "step": done, "seconds": passed}, state_file)
            if time.monotonic() > until and done % SAVE_EVERY == 0:
                return None
    return Trained(curve, torch.load(state_file, weights_only=True)["seconds"] / 60)


def _save(state: dict[str, Any], file: Path) -> None:
    torch.save(state, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def write_checkpoint(model: torch.nn.Module, out: Path, results: str) -> dict[str, str]:
    """Write the model in bfloat16 with its side files; return the SHA-256 of each shard."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="1500KB")
    rename_tensors(out)
    write_side_files(out, results)  # replace the library's files, which contain its version
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.safetensors"))}


def same_settings(settings: Settings, work: Path) -> None:
    """Raise SystemExit if the directory holds a run with other settings."""
    file, now = work / "settings.json", asdict(settings)
    if file.exists() and (before := json.loads(file.read_text())) != now:
        raise SystemExit(f"{work} holds a run with other settings ({before}): name another directory with --work")
    write_text(file, json.dumps(now, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature model behind `--model demo`.")
    parser.add_argument("--work", type=Path, required=True, help="directory of the run's state and its result")
    parser.add_argument("--install", action="store_true", help="replace the shipped checkpoint and the record")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop at the next save after this time")
    parser.add_argument("--held-out", type=int, default=600, help="number of held-out scenes (default: %(default)s)")
    for setting in fields(Settings):
        flag = "--" + setting.name.replace("_", "-")
        parser.add_argument(flag, type=type(setting.default), default=setting.default, help="default: %(default)s")
    options = parser.parse_args()
    settings = Settings(**{setting.name: getattr(options, setting.name) for setting in fields(Settings)})
    options.work.mkdir(parents=True, exist_ok=True)
    same_settings(settings, options.work)
    torch.set_num_threads(options.threads)
    until = time.monotonic() + 60 * options.minutes

    print("rendering scenes", flush=True)
    data = render(settings.scenes, settings.seed, options.threads)
    model = new_model(settings.seed)
    finished: dict[str, Trained] = {}
    for stage_class in (VisionStage, LanguageStage):
        stage = stage_class(model, data, settings)
        trained = train(stage, options.work, until)
        if trained is None:
            print("time is up; run again to resume")
            return
        finished[stage.name] = trained
    assert isinstance(stage, LanguageStage)
    held_out = render(options.held_out, HELD_OUT_SEED, options.threads)
    measured = {"loss": stage.loss_on(held_out), **report(model, options.held_out, held_out)}
    shards = write_checkpoint(model, options.work / "checkpoint", results_table(measured, options.held_out))
    record = {
        "settings": asdict(settings),
        "machine": f"{platform.processor() or platform.machine()}, {options.threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "minutes": {name: round(trained.minutes, 1) for name, trained in finished.items()},
        "held_out": {"scenes": options.held_out, "seed": HELD_OUT_SEED, **measured},
        "curves": {
            name: [[step, round(loss, 4)] for step, loss in trained.curve] for name, trained in finished.items()
        },
        "sha256": shards,
    }
    write_text(options.work / "record.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["held_out"], indent=1))
    if options.install:
        shutil.rmtree(demo_checkpoint())
        shutil.copytree(options.work / "checkpoint", demo_checkpoint())
        shutil.copyfile(options.work / "record.json", RECORD)


def report(model: torch.nn.Module, count: int, held_out: RenderedScenes) -> dict[str, float]:
    """Return the held-out figures of the model in bfloat16, as it is saved."""
    return measure(model.to(torch.bfloat16), count, HELD_OUT_SEED)


if __name__ == "__main__":
    main()
