#!/usr/bin/env python
"""Train an embedded miniature model from scratch on the scenes of its own world.

There are two stages: the vision tower learns the kinds of objects in each patch, then projector and language model
learn captions and short questions. The result depends only on the settings, the library versions and the machine's
arithmetic. The run saves its state every few minutes, and resumes from there when it is started again.

    python scripts/demo_model/train_demo_model.py --work /tmp/demo             # train; resumes
    python scripts/demo_model/train_demo_model.py --work /tmp/demo --install   # and replace the shipped checkpoint
    python scripts/demo_model/train_demo_model.py --work /tmp/small --world small    # the one of `demo-small`
    python scripts/demo_model/train_demo_model.py --work /tmp/demo --measure-saved    # measure the last saved step
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import platform
import shutil
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from demo_training.checkpoint import new_model, write_side_files, write_text
from demo_training.data import RenderedScenes, render
from demo_training.heldout import measure, results_table
from demo_training.published_names import rename_tensors
from demo_training.spectra import middle_layers, spectra, without_modes
from demo_training.stages import SETTINGS, LanguageStage, Settings, VisionStage, language_modules
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qkedit.demo import DEMO, SMALL_DEMO, demo_checkpoint
from qkedit.demo.world import World
from qkedit.demo.worlds import DEFAULT_WORLD, WORLDS

RECORDS = Path(__file__).resolve().parent / "demo_training"
# The shipped checkpoint and the record of each world.
SHIPPED = {"small": (SMALL_DEMO, "small_record.json"), "crowded": (DEMO, "crowded_record.json")}
HELD_OUT_SEED = 1_000_000  # far from any training seed; the laboratory uses different ones
CURVE_EVERY = 50
SAVE_EVERY = 250


@dataclass(frozen=True)
class Trained:
    """A finished stage: its curve (step, mean loss of the last 50 steps), its spectra, and the minutes of all runs."""

    curve: list[tuple[int, float]]
    spectra: list[tuple[int, dict[str, float]]]
    minutes: float


def train(stage: VisionStage | LanguageStage, work: Path, until: float) -> Trained | None:
    """Run a stage from its last saved state; return None if time ran out."""
    state_file = work / f"{stage.name}.pt"
    optimizer = torch.optim.AdamW(stage.parameter_groups(), betas=(0.9, 0.98), weight_decay=0.05)
    curve: list[tuple[int, float]] = []
    shapes: list[tuple[int, dict[str, float]]] = []
    first, seconds, started = 0, 0.0, time.monotonic()
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        stage.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        curve, first, seconds, shapes = state["curve"], state["step"], state["seconds"], state["spectra"]
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        task = progress.add_task(stage.name, total=stage.steps, completed=first, loss=float("nan"))
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["factor"] * stage.learning_rate(step)
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
                if isinstance(stage, LanguageStage):
                    shapes.append((done, spectra_of(stage)))
                    print(f"{stage.name} {done} {shapes[-1][1]}", flush=True)
                state = {"modules": stage.modules.state_dict(), "optimizer": optimizer.state_dict()}
                passed = seconds + time.monotonic() - started
                _save({**state, "curve": curve, "spectra": shapes, "step": done, "seconds": passed}, state_file)
            if time.monotonic() > until and done % SAVE_EVERY == 0:
                return None
    return Trained(curve, shapes, torch.load(state_file, weights_only=True)["seconds"] / 60)


def spectra_of(stage: LanguageStage) -> dict[str, float]:
    """Return the spectra of the middle layers of the stage's model."""
    middle = middle_layers(len(stage.language_model.layers))
    return {name: round(value, 4) for name, value in spectra(stage.language_model, middle).items()}


def effect_of_modes(stage: LanguageStage, held_out: RenderedScenes) -> dict[str, float]:
    """Return the loss on held-out scenes without the top four modes of the middle layers, and without random ones."""
    middle, found = middle_layers(len(stage.language_model.layers)), {}
    for which in ("top", "random"):
        with without_modes(stage.language_model, middle, 4, which):
            found[f"loss_without_{which}_4"] = round(stage.loss_on(held_out), 4)
    return found


def _save(state: dict[str, Any], file: Path) -> None:
    torch.save(state, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def write_checkpoint(model: torch.nn.Module, out: Path, results: str, world: World) -> dict[str, str]:
    """Write the model in bfloat16 with its side files; return the SHA-256 of each shard."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="1500KB")
    rename_tensors(out)
    write_side_files(out, results, world)  # replace the library's files, which contain its version
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.safetensors"))}


def same_settings(settings: Settings, work: Path) -> None:
    """Raise SystemExit if the directory holds a run with other settings, whose steps would have been different."""
    file, now = work / "settings.json", asdict(settings)
    before = json.loads(file.read_text()) if file.exists() else now
    if before != now and _steps_done(work / "language.pt") > Settings(**before).shared_steps(settings):
        raise SystemExit(f"{work} holds a run with other settings ({before}): name another directory with --work")
    write_text(file, json.dumps(now, indent=2) + "\n")


def rendered(settings: Settings, work: Path, processes: int) -> RenderedScenes:
    """Return the training scenes, which a resumed run finds in its directory."""
    file = work / "scenes.pickle"
    if not file.exists():
        print("rendering scenes", flush=True)
        data = render(settings.scenes, settings.seed, processes, WORLDS[settings.world])
        file.with_suffix(".new").write_bytes(pickle.dumps(data))
        os.replace(file.with_suffix(".new"), file)
    return pickle.loads(file.read_bytes())


def _steps_done(state_file: Path) -> int:
    return torch.load(state_file, weights_only=True)["step"] if state_file.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an embedded miniature model on the scenes of its world.")
    parser.add_argument("--work", type=Path, required=True, help="directory of the run's state and its result")
    parser.add_argument("--install", action="store_true", help="replace the shipped checkpoint and the record")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop at the next save after this time")
    parser.add_argument("--measure-saved", action="store_true", help="measure the last saved step, and do not train")
    parser.add_argument("--held-out", type=int, default=600, help="number of held-out scenes (default: %(default)s)")
    for setting in fields(Settings):
        flag = "--" + setting.name.replace("_", "-")
        parser.add_argument(flag, type=type(setting.default), help="by default that of the world")
    options = parser.parse_args()
    world = WORLDS[options.world or DEFAULT_WORLD.name]
    given = {setting.name: getattr(options, setting.name) for setting in fields(Settings)}
    settings = replace(SETTINGS[world.name], **{name: value for name, value in given.items() if value is not None})
    if options.measure_saved:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure_saved(options.work, options.held_out, world), indent=1))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    same_settings(settings, options.work)
    torch.set_num_threads(options.threads)
    until = time.monotonic() + 60 * options.minutes

    data = rendered(settings, options.work, options.threads)
    model = new_model(settings.seed, world)
    finished: dict[str, Trained] = {}
    for stage_class in (VisionStage, LanguageStage):
        stage = stage_class(model, data, settings)
        trained = train(stage, options.work, until)
        if trained is None:
            print("time is up; run again to resume")
            return
        finished[stage.name] = trained
    assert isinstance(stage, LanguageStage)
    held_out = render(options.held_out, HELD_OUT_SEED, options.threads, world)
    loss, effect, shape = stage.loss_on(held_out), effect_of_modes(stage, held_out), spectra_of(stage)
    measured = {"loss": loss, **report(model, options.held_out, held_out)}
    shards = write_checkpoint(model, options.work / "checkpoint", results_table(measured, options.held_out), world)
    record = {
        "settings": asdict(settings),
        "machine": f"{platform.processor() or platform.machine()}, {options.threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "minutes": {name: round(trained.minutes, 1) for name, trained in finished.items()},
        "held_out": {"scenes": options.held_out, "seed": HELD_OUT_SEED, **measured},
        "spectra": {**shape, **effect, "on_the_way": finished["language"].spectra},
        "curves": {
            name: [[step, round(loss, 4)] for step, loss in trained.curve] for name, trained in finished.items()
        },
        "sha256": shards,
    }
    write_text(options.work / "record.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["held_out"], indent=1))
    if options.install:
        name, record_name = SHIPPED[world.name]
        shutil.rmtree(demo_checkpoint(name), ignore_errors=True)
        shutil.copytree(options.work / "checkpoint", demo_checkpoint(name))
        shutil.copyfile(options.work / "record.json", RECORDS / record_name)


def measure_saved(work: Path, count: int, world: World) -> dict[str, float]:
    """Return the step that a run has saved last in its second stage, and the held-out figures of the model there."""
    model = new_model(0, world)
    vision, language = (torch.load(work / f"{name}.pt", weights_only=True) for name in ("vision", "language"))
    tower = {name: tensor for name, tensor in vision["modules"].items() if name.startswith("tower.")}
    model.model.vision_tower.load_state_dict({name.removeprefix("tower."): tensor for name, tensor in tower.items()})
    language_modules(model).load_state_dict(language["modules"])
    return {"step": language["step"], **measure(model.to(torch.bfloat16), count, HELD_OUT_SEED, world)}


def report(model: torch.nn.Module, count: int, held_out: RenderedScenes) -> dict[str, float]:
    """Return the held-out figures of the model in bfloat16, as it is saved."""
    return measure(model.to(torch.bfloat16), count, HELD_OUT_SEED, held_out.world)


if __name__ == "__main__":
    main()
