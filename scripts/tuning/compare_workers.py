"""Compare the time of one search in rounds between numbers of workers, on the demo's scenes.

    python scripts/tuning/compare_workers.py --workers 1 2

Each search runs the same trials in rounds of `--at-once`. Shown are the seconds by the clock, the seconds of processor
time of all processes, and the seconds after the first round beside those that `tune` announced. The exit code is 1 if
two searches differ in a result, or an announcement is not within a factor of two.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

from qkedit.demo import DEMO
from qkedit.demo.worlds import world_name_for
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.tuning.scenes import SceneData
from qkedit.laboratory.tuning.search import SearchSettings, Watch
from qkedit.laboratory.tuning.space import SearchSpace
from qkedit.laboratory.tuning.tune import goal_of, tune_model

# A measure that some edit improves, so that there is a confirmation to take its time.
OBJECTIVE = "accuracy_random"
SPACE = SearchSpace(("each", "mid"), channels=("symmetric", "full"), retains=(0.0, 0.5, 0.8))


def processor_seconds() -> float:
    """Return the processor time of this process and of those that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def results(report: dict[str, Any]) -> Any:
    """Return all of a report that does not tell time."""
    trials = [{**one, "seconds": 0, "effect": {**one["effect"], "seconds": 0}} for one in report["trials"]]
    return {**report, "trials": trials, "seconds": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("| workers | clock | processor | announced | took | took / announced |\n|--:|--:|--:|--:|--:|--:|")
    found, ratios = [], []
    for workers in options.workers:
        data = SceneData(SceneRange(options.scenes, world=world_name_for(options.model, None)))
        announced: list[tuple[float, float]] = []
        before, started = processor_seconds(), time.perf_counter()
        report = tune_model(
            LocalModel(options.model, dtype="float32"),
            data,
            SPACE,
            goal_of(OBJECTIVE, "none", data.measures),
            SearchSettings(options.trials, at_once=options.at_once, workers=workers),
            watch=Watch(estimate=lambda seconds, told=announced: told.append((seconds, time.perf_counter()))),  # type: ignore[misc]
        )
        ended = time.perf_counter()
        ((seconds, at),) = announced
        ratios.append((ended - at) / seconds)
        found.append(results(report.as_dict()))
        print(
            f"| {workers} | {ended - started:.0f} s | {processor_seconds() - before:.0f} s | {seconds:.0f} s "
            f"| {ended - at:.0f} s | {ratios[-1]:.2f} |",
            flush=True,
        )
    equal = all(one == found[0] for one in found)
    print(f"the same trials, values and choice: {'yes' if equal else 'no'}")
    return int(not equal or not all(0.5 <= ratio <= 2 for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
