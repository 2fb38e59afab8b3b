"""Search for the planted optimum with several seeds, and show what each search finds.

python scripts/tuning/find_planted.py --seeds 6
"""

from __future__ import annotations

import argparse

import torch
from kill_tune import search
from planted import HEAD, LAYER

from qkedit.demo import SMALL_DEMO
from qkedit.runtime.loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(SMALL_DEMO)
    print(f"planted: layer {LAYER}, head {HEAD}")
    for seed in range(options.seeds):
        report = search(loaded, None, options.trials, seed=seed)
        best = "nothing" if report.best is None else report.best.edit.name
        print(f"seed {seed}: {best}: {report.verdict.value}", flush=True)


if __name__ == "__main__":
    main()
