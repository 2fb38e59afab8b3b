"""Valid inputs to mutate: generated checkpoints, one of them edited."""

from __future__ import annotations

import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import make_checkpoint

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.spectral.suppression import Suppression
from qkedit.steering.plan import plan_for
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions, SteerOptions

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# Three layers of grouped queries in three shards; a run takes a few hundredths of a second.
SHAPE = make_checkpoint.SHAPES["qwen2-vl-tiny"]
SHARD_BYTES = 200_000
OPTIONS = SteerOptions(layers="all", suppression=Suppression(k=2), device="cpu")


def checkpoint(directory: Path) -> Path:
    """Write a checkpoint of half a megabyte with all files of a published one, and return its directory."""
    with redirect_stderr(StringIO()):
        make_checkpoint.write_checkpoint(directory, SHAPE, shard_bytes=SHARD_BYTES)
    return directory


def steer(base: Path, out: Path, layout: str = "full") -> Path:
    """Edit a checkpoint, and return the directory of the output."""
    run_plan(plan_for(str(base), OPTIONS), OutputOptions(out, layout, fsync=False))  # type: ignore[arg-type]
    return out


def demo(directory: Path) -> Path:
    """Copy the demo's checkpoint, which has a tokenizer, and return the copy."""
    shutil.copytree(demo_checkpoint(SMALL_DEMO), directory)
    return directory
