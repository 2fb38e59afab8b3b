"""Kill a search for a planted optimum at random moments, and show that it ends as if it had not been killed.

    python scripts/tuning/kill_tune.py --kills 20
    python scripts/tuning/kill_tune.py --kills 20 --at-once 4 --workers 2 --longest 20

Each kill is a SIGKILL of a process that runs the search, after a random time. In the end the file of the killed search
holds the results of an undisturbed one in a single process, each once, with the same answers and, with one worker, in
the same order. The exit code is 1 if it does not, or if a worker outlives its search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from planted import Planted

from qkedit.demo import SMALL_DEMO
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.laboratory.tuning.result import TuneReport
from qkedit.laboratory.tuning.search import SearchSettings
from qkedit.laboratory.tuning.space import SearchSpace
from qkedit.laboratory.tuning.tune import goal_of, tune_model
from qkedit.runtime.loading import LoadedModel, load

SPACE = SearchSpace(("each",), ("all", "each"), (1, 4), (), ("full", "symmetric"), (0.0, 0.5))


def search(
    loaded: LoadedModel, out: Path | None, trials: int, *, seed: int = 0, at_once: int = 1, workers: int = 1
) -> TuneReport:
    """Search for the planted optimum, on a model that is loaded already."""
    data = Planted()
    data.remember(loaded.model)
    settings = SearchSettings(trials, controls=2, at_once=at_once, workers=workers)
    goal = goal_of("hr", "recall:0.05", data.measures)
    model = LocalModel(SMALL_DEMO, shared=Shared(loaded))
    return tune_model(model, data, SPACE, goal, settings, seed=seed, drift_images=0, out=out)


def results(file: Path) -> list[dict[str, Any]]:
    """Return the results in a file, without the seconds they took."""
    records = [json.loads(line) for line in file.read_bytes().split(b"\n")[1:-1]]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def killed(run: Callable[[], object], seconds: float) -> bool:
    """Run a search in a process of its own, and kill it after some seconds; return False if it ended before.

    Raises:
        RuntimeError: its workers are still there after a minute.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # a group with its workers
        try:
            run()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for _ in range(600):
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return os.WIFSIGNALED(status)
        time.sleep(0.1)
    raise RuntimeError(f"the workers of process {child} did not end")


def _key(record: dict[str, Any]) -> str:
    return str(record["key"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--longest", type=float, default=1.5, help="the longest time before a kill, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    draws = random.Random(options.seed)
    torch.set_num_threads(1)  # a copy of this process has no other threads
    loaded = load(SMALL_DEMO)
    with tempfile.TemporaryDirectory() as directory:
        disturbed, undisturbed = Path(directory, "killed.jsonl"), Path(directory, "whole.jsonl")
        settings = {"trials": options.trials, "at_once": options.at_once}
        run = partial(search, loaded, disturbed, workers=options.workers, **settings)
        kills, lengths = 0, []
        while kills < options.kills:
            if not killed(run, draws.uniform(0.1, options.longest)):
                disturbed.unlink()  # it was done, and is searched again
                lengths.append("done")
                continue
            kills += 1
            lengths.append(str(disturbed.read_bytes().count(b"\n") - 1 if disturbed.exists() else 0))
        report = run()
        search(loaded, undisturbed, **settings)
        found, expected = results(disturbed), results(undisturbed)
        if options.workers > 1:  # which write their results in the order in which they have them
            found, expected = sorted(found, key=_key), sorted(expected, key=_key)
        keys = [record["key"] for record in found]
        print(f"{kills} kills; results in the file after each: {', '.join(lengths)}")
        print(f"{len(keys)} results, {len(keys) - len(set(keys))} of them twice; {report.resumed} were there before")
        print(f"equal to an undisturbed search: {'yes' if found == expected else 'no'}")
        return int(found != expected or len(keys) != len(set(keys)))


if __name__ == "__main__":
    sys.exit(main())
