"""Write the files that several scripts here read, each once, also if two scripts run at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints

SCENES = 60
MAKERS = {"depth": checkpoints.depth_model, **checkpoints.FAMILIES}


def write_once(directory: Path, make: Callable[[Path], object]) -> Path:
    """Let `make` write a directory unless it exists, and return it."""
    if not directory.exists():
        own = directory.with_name(f"{directory.name}.{os.getpid()}")
        make(own)
        try:
            own.rename(directory)
        except OSError:  # another process has written it meanwhile
            shutil.rmtree(own)
    return directory


def checkpoint(work: Path, name: str) -> Path:
    """Return the directory of a tiny model of a family, or of the depth model, `depth`."""
    return write_once(work / name, MAKERS[name])


def scenes(work: Path) -> Path:
    """Return a directory with POPE's questions about scenes of the small world."""
    from qkedit.demo.files import write_scenes
    from qkedit.demo.scenes import make_scenes
    from qkedit.demo.worlds import SMALL

    return write_once(
        work / "scenes",
        lambda directory: write_scenes(list(make_scenes(SCENES, seed=3_000_000, world=SMALL)), directory),
    )
