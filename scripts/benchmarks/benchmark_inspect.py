#!/usr/bin/env python
"""Measure `qkedit inspect` on a checkpoint, and compare it with reading its bytes and the mathematics of `steer`.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --out ./qwen2-vl-7b-shaped
    python scripts/benchmarks/benchmark_inspect.py ./qwen2-vl-7b-shaped --markdown inspect.md

Prints Markdown that names the machine. Each view runs in its own process, with its peak memory; reading and the
mathematics of `steer` on the same layers are measured separately, and so is `import torch`. All are interleaved. Use
an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarking import mathematics, stages
from benchmarking.commands import CommandFailedError, Request, import_torch, qkedit
from benchmarking.machine import describe_machine
from benchmarking.results import Command, CommandRun, Stage
from benchmarking.timing import Timing, in_turns

from qkedit.errors import QkeditError
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.steer_options import SteerOptions

VIEWS = {
    "inspect": [],
    "inspect --channel symmetric": ["--channel", "symmetric"],
    "inspect --channel antisymmetric": ["--channel", "antisymmetric"],
    "inspect --offset 5": ["--offset", "5"],
    "inspect --offset 0,3,-2": ["--offset", "0,3,-2"],
}


def measure_views(request: Request, repeats: int, multimodal: bool) -> dict[str, Command]:
    """Run every view, its comparison with itself, and `import torch`."""

    def view(arguments: list[str]) -> Callable[[], CommandRun]:
        where = ["--layers", request.layers, "--device", request.device, "--json", "--allow-text-only"]
        return lambda: qkedit(["inspect", str(request.model), *where, *arguments], request.threads)

    views = {name: view(arguments) for name, arguments in VIEWS.items() if multimodal or "," not in name}
    views["inspect --compare"] = view(["--compare", str(request.model)])
    taken = in_turns(repeats, {**views, "import torch": lambda: import_torch(request)})
    return {name: Command(tuple(runs)) for name, runs in taken.items()}


def markdown(plan: SteerPlan, request: Request, commands: dict[str, Command], parts: dict[str, Stage]) -> str:
    """Return the results as a Markdown document."""
    machine = describe_machine(request.work, request.device)
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    heads = sum(len(planned.heads) for planned in plan.layers)
    wanted = sum(part.ours.median for part in parts.values())
    inspect, start = commands["inspect"].process.median, commands["import torch"].process.median
    cores = f"{machine['cores']} cores, {request.threads} threads"
    return "\n".join(
        [
            f"{machine['processor']}, {cores}, device {machine['device']}; {libraries}. "
            f"{plan.checkpoint.files.name}: {len(plan.layers)} layers, {heads} heads, "
            f"{plan.bytes_to_read / 1e6:.0f} MB of queries and keys.",
            "",
            "| what | seconds | peak memory |",
            "|---|---|---|",
            *_rows(commands, parts),
            "",
            f"`inspect` takes {inspect:.2f} s; reading the bytes and the mathematics of `steer` take {wanted:.2f} s, "
            f"starting with torch {start:.2f} s: {inspect / (wanted + start):.2f} × their sum.",
            "",
        ]
    )


def _rows(commands: dict[str, Command], parts: dict[str, Stage]) -> Iterator[str]:
    for name, command in commands.items():
        peak = f"{(command.peak_bytes or 0) / 1e6:.0f} MB"
        yield f"| `{name}`, whole process | {_seconds(command.process)} | {peak} |"
    for name, part in parts.items():
        yield f"| {name} | {_seconds(part.ours)} | |"


def _seconds(timing: Timing) -> str:
    return f"{timing.median:.2f} ({min(timing.seconds):.2f}–{max(timing.seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare qkedit inspect with reading and the mathematics of steer.")
    parser.add_argument("model", type=Path, help="a checkpoint's directory")
    parser.add_argument("--layers", default="all", help="layers to inspect (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of everything (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of the mathematics")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the results as Markdown")
    options = parser.parse_args()
    try:
        edit = SteerOptions(options.layers, device=options.device, allow_text_only=True)
        plan = plan_for(str(options.model), edit)
        model = options.model.resolve()
        request = Request(model, model.parent, options.layers, 4, options.device, options.threads, "warm")
        torch.set_num_threads(options.threads)
        parts = {
            "reading the same bytes": stages.measure_reading(plan, request, options.repeats),
            "mathematics of `steer`": mathematics.measure_mathematics(plan, options.repeats)[0],
        }
        multimodal = "multimodal" in plan.layers[0].layer.rope
        document = markdown(plan, request, measure_views(request, options.repeats, multimodal), parts)
    except (QkeditError, CommandFailedError) as error:
        parser.exit(getattr(error, "exit_code", 1), f"error: {error}\n")
    sys.stdout.write(document)
    if options.markdown:
        options.markdown.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
