"""Compare the time that `tune` announces after its first trial with the time that it takes, on the demo's scenes.

    python scripts/tuning/estimate.py

Both are seconds of this process's processor time, which other work on the machine hardly changes; with `--clock wall`
they are seconds as a user sees them. The exit code is 1 if one estimate is not within a factor of two.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qkedit.demo import SMALL_DEMO
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.tuning import trial_runner
from qkedit.laboratory.tuning.scenes import SceneData
from qkedit.laboratory.tuning.search import SearchSettings, Watch
from qkedit.laboratory.tuning.space import SearchSpace
from qkedit.laboratory.tuning.tune import goal_of, tune_model

SPACE = SearchSpace(("each", "mid"), channels=("symmetric", "full"), retains=(0.0, 0.5))
SINGLE_HEADS = SearchSpace(("each",), ("each",), (1, 4))


@dataclass(frozen=True)
class Run:
    """One search.

    Attributes:
        name: the setting in words.
        scenes: the number of scenes, half of them for the choice.
        trials: the number of trials.
        space: the space.
        prunes: whether hopeless trials are stopped early.
    """

    name: str
    scenes: int
    trials: int
    space: SearchSpace = SPACE
    prunes: bool = True


RUNS = (
    Run("few scenes", 32, 16),
    Run("more scenes", 96, 12),
    Run("no trial is stopped early", 64, 12, prunes=False),
    Run("single heads", 64, 16, SINGLE_HEADS),
)


def measured(run: Run, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds that were announced for the rest of a search, and those that it took."""
    announced: list[tuple[float, float]] = []
    data = SceneData(SceneRange(run.scenes, world=SMALL.name))
    tune_model(
        LocalModel(SMALL_DEMO, dtype="float32"),
        data,
        run.space,
        goal_of(None, None, data.measures),
        SearchSettings(run.trials),
        prunes=run.prunes,
        watch=Watch(estimate=lambda seconds: announced.append((seconds, clock()))),
    )
    ((seconds, at),) = announced
    return seconds, clock() - at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor")
    clock = {"processor": time.process_time, "wall": time.perf_counter}[parser.parse_args().clock]
    trial_runner.time.perf_counter = clock  # type: ignore[attr-defined]  # the seconds from which tune estimates
    torch.set_num_threads(1)
    print("| setting | scenes | trials | announced | took | took / announced |\n|:--|--:|--:|--:|--:|--:|")
    ratios = []
    for run in RUNS:
        announced, took = measured(run, clock)
        ratios.append(took / announced)
        print(
            f"| {run.name} | {run.scenes} | {run.trials} | {announced:.0f} s | {took:.0f} s | {ratios[-1]:.2f} |",
            flush=True,
        )
    return int(not all(0.5 <= ratio <= 2 for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
