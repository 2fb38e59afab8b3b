#!/usr/bin/env python
"""Measure `qkedit steer` on a checkpoint against `cp -r` and against a floor for each of its stages, in one run.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --out ./qwen2-vl-7b-shaped
    python scripts/benchmarks/benchmark.py ./qwen2-vl-7b-shaped --layers 10-20 --json b.json --markdown b.md

Prints a Markdown document that names the machine, and writes it as JSON and Markdown on request. Linux only; qkedit
must be installed in the interpreter that runs this. Use an otherwise idle machine: the script cannot correct for other
work on the same cores.

It measures the following, each `--repeats` times and interleaved, so that a drift of the machine affects both sides of
a ratio:

* whole commands, each a process of its own with its peak memory: `cp -r`, `steer` to a full directory and to a delta,
  `apply`, `verify`, `--dry-run`, `--help`, and `import torch` as the least that a program with torch takes;
* every step of `steer` alone – reading, mathematics, copying, writing, hashing, checks – compared with a plain loop
  over the same bytes, or the same matrix products and small decompositions;
* other routes to the mathematics: QR in two precisions, and with `--dense` the dense decomposition of one head's
  product (a minute at 7B width), extrapolated to all heads;
* with `--mergekit PYTHON`, an interpreter that has mergekit: its passthrough of the language model's tensors.

Before each whole-directory run the disk is brought to rest and the checkpoint is read once, or with `--cold` dropped
from the page cache. One full output is on the disk at a time, next to the model or in `--work`, and is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import commands, mathematics, stages
from benchmarking.commands import Request
from benchmarking.disk import CacheState
from benchmarking.machine import describe_machine
from benchmarking.mergekit import passthrough
from benchmarking.render import markdown
from benchmarking.results import Benchmark, Command, CommandRun
from benchmarking.timing import in_turns

from qkedit.errors import QkeditError
from qkedit.spectral.suppression import Suppression
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.steer_options import SteerOptions


def measure(plan: SteerPlan, request: Request, options: argparse.Namespace) -> Benchmark:
    """Take every requested measurement."""
    # Prepared first, so that an interpreter without mergekit is reported at the start.
    rewrite = passthrough(request, options.mergekit) if options.mergekit else None
    machine = describe_machine(request.work, request.device)
    torch.set_num_threads(request.threads)
    # Small measurements first: the later ones fill the page cache with other files.
    mathematics_stage, floor = mathematics.measure_mathematics(plan, options.repeats)
    routes = [*mathematics.measure_routes(plan, options.repeats)]
    if options.dense:
        routes += mathematics.measure_dense_route(plan)
    reading = stages.measure_reading(plan, request, options.repeats)
    writing = stages.measure_writing(plan, request, options.repeats)
    copying = stages.measure_copying(plan, request, options.repeats)
    return Benchmark(
        machine,
        settings(plan, request, options.repeats),
        measure_commands(request, options.repeats, rewrite),
        {"reading": reading, "mathematics": mathematics_stage, "copying": copying} | writing,
        floor,
        tuple(routes),
    )


def measure_commands(request: Request, repeats: int, rewrite: Callable[[], CommandRun] | None) -> dict[str, Command]:
    """Run every command; those that write a whole directory take turns. `rewrite` runs mergekit, or is None."""
    whole: dict[str, Callable[[], dict[str, CommandRun]]] = {
        "cp -r": lambda: {"cp -r": commands.copy_directory(request)},
        "steer, verify": lambda: commands.steer_and_verify(request),
        "steer to a delta, apply": lambda: commands.steer_delta_and_apply(request),
    }
    if rewrite is not None:
        whole["mergekit"] = lambda: {"mergekit": rewrite()}
    short: dict[str, Callable[[], dict[str, CommandRun]]] = {
        "steer --dry-run": lambda: {"steer --dry-run": commands.dry_run(request)},
        "qkedit --help": lambda: {"qkedit --help": commands.help_page(request)},
        "import torch": lambda: {"import torch": commands.import_torch(request)},
    }
    runs: dict[str, list[CommandRun]] = {}
    for taken in (in_turns(repeats, whole), in_turns(repeats, short)):
        for results in taken.values():
            for result in results:
                for name, run in result.items():
                    runs.setdefault(name, []).append(run)
    return {name: Command(tuple(taken)) for name, taken in runs.items()}


def settings(plan: SteerPlan, request: Request, repeats: int) -> dict[str, Any]:
    """Return the settings of the benchmark and the amount of work."""
    return {
        "model": plan.checkpoint.files.name,
        "layers": request.layers,
        "k": request.k,
        "threads": request.threads,
        "repeats": repeats,
        "cache": request.cache,
        "tensors": len(plan.tensors),
        "heads": sum(len(planned.heads) for planned in plan.layers),
        "directory_bytes": plan.checkpoint.kept_bytes,
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
    }


def _refuse_full_disk(work: Path, plan: SteerPlan) -> None:
    free = shutil.disk_usage(work).free
    needed = plan.checkpoint.kept_bytes + 2 * plan.bytes_to_write
    if free < needed:
        raise QkeditError(
            f"{free / 1e9:.1f} GB are free and {needed / 1e9:.1f} GB are needed",
            where=str(work),
            remedy="name a directory with more space with --work",
        )


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure qkedit steer against cp -r and the floor of each stage.")
    parser.add_argument("argument", metavar="MODEL", nargs="?", type=Path, help="a checkpoint's directory")
    parser.add_argument("--model", type=Path, help="the same as MODEL")
    parser.add_argument("--layers", default="10-20", help="layers to edit (default: %(default)s)")
    parser.add_argument("--k", type=int, default=4, help="modes per head to suppress (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, for the mathematics")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of everything (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the mathematics (default: one per core)")
    parser.add_argument("--cold", action="store_true", help="drop the checkpoint from the page cache before each run")
    parser.add_argument("--dense", action="store_true", help="also measure the dense decomposition of one head")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter with mergekit, to compare with")
    parser.add_argument(
        "--work", type=Path, help="directory for outputs, which are removed (default: next to the model)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the results as Markdown")
    return parser


def main() -> None:
    parser = argument_parser()
    options = parser.parse_args()
    if (options.argument is None) == (options.model is None):
        parser.error("name the model once: first, or as --model")
    model = (options.argument or options.model).resolve()
    cores = len(os.sched_getaffinity(0))
    threads = cores if options.threads is None else options.threads
    if options.repeats < 1 or not 1 <= threads <= cores:
        parser.error(f"--repeats must be at least 1, and --threads between 1 and {cores}, the number of cores")
    work = options.work or model.parent
    for directory in (work, *(file.parent for file in (options.json, options.markdown) if file)):
        if not directory.is_dir():  # reported now, not after a quarter of an hour
            parser.error(f"{directory} is not a directory")
    try:
        edit = SteerOptions(options.layers, "all", Suppression(options.k), device=options.device)
        plan = plan_for(str(model), edit)
        _refuse_full_disk(work, plan)
        with tempfile.TemporaryDirectory(prefix="qkedit-benchmark-", dir=work) as folder:
            cache: CacheState = "cold" if options.cold else "warm"
            request = Request(model, Path(folder), options.layers, options.k, options.device, threads, cache)
            benchmark = measure(plan, request, options)
    except (QkeditError, commands.CommandFailedError) as error:
        parser.exit(getattr(error, "exit_code", 1), f"error: {error}\n")
    document = markdown(benchmark)
    sys.stdout.write(document)
    if options.json:
        options.json.write_text(json.dumps(benchmark.as_dict(), indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
