#!/usr/bin/env python
"""Time the commands of two versions of qkedit in turns, in one run, and print the ratios.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --out ./qwen2-vl-7b-shaped
    python scripts/benchmarks/before_and_after.py OLD/.venv/bin/python NEW/.venv/bin/python ./qwen2-vl-7b-shaped

Each version is an interpreter in which it is installed. Every command runs in its own process; before each one that
writes, pending writes are flushed and the checkpoint is read once. Use an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarking.commands import CommandFailedError, run_function
from benchmarking.disk import settle
from benchmarking.machine import describe_machine
from benchmarking.results import CommandRun
from benchmarking.timing import Timing, in_turns

_ENTRY = """
from importlib.metadata import entry_points
print(*(found.value for found in entry_points(group="console_scripts", name="qkedit")))
"""


@dataclass(frozen=True)
class Compared:
    """One command of both versions: seconds and peak memory of every repetition."""

    before: tuple[CommandRun, ...]
    after: tuple[CommandRun, ...]

    @property
    def ratio(self) -> float:
        """Seconds after over seconds before, of the medians."""
        return _seconds(self.after).median / _seconds(self.before).median

    @property
    def fastest_ratio(self) -> float:
        """The same of the fastest run on each side, which other work on the machine disturbs least."""
        return min(_seconds(self.after).seconds) / min(_seconds(self.before).seconds)


def compare(before: str, after: str, model: Path, layers: str, repeats: int, threads: int) -> dict[str, Compared]:
    """Run every command of both versions in turns. Raises CommandFailedError if one of them fails."""
    found: dict[str, Compared] = {}
    with tempfile.TemporaryDirectory(prefix="qkedit-versions-", dir=model.parent) as folder:
        work = Path(folder)
        entries = {interpreter: _entry(interpreter) for interpreter in (before, after)}
        for name, arguments in _commands(model, layers, work).items():
            sides: dict[str, Callable[[], CommandRun]] = {
                side: partial(_run, interpreter, entries[interpreter], arguments, model, work, threads)
                for side, interpreter in (("before", before), ("after", after))
            }
            runs = in_turns(repeats, {f"{name}, {side}": run for side, run in sides.items()})
            taken = [tuple(results) for results in runs.values()]
            found[name] = Compared(*taken)
    return found


def _commands(model: Path, layers: str, work: Path) -> dict[str, list[str]]:
    steer = ["steer", str(model), "--layers", layers, "--device", "cpu"]
    return {
        "--help": ["--help"],
        "steer --dry-run": [*steer, "--dry-run", "--out", str(work / "none")],
        "steer": [*steer, "--out", str(work / "full")],
        "steer --layout delta": [*steer, "--layout", "delta", "--out", str(work / "delta")],
        "inspect": ["inspect", str(model), "--layers", layers, "--device", "cpu"],
    }


def _run(interpreter: str, entry: str, arguments: list[str], model: Path, work: Path, threads: int) -> CommandRun:
    if "--out" in arguments:
        settle(model, "warm")
    run, _ = run_function(entry, arguments, threads, interpreter)
    for output in work.iterdir():
        shutil.rmtree(output)
    return run


def _entry(interpreter: str) -> str:
    """The function behind the command `qkedit` of an interpreter, as `module:function`."""
    asked = subprocess.run([interpreter, "-c", _ENTRY], capture_output=True, text=True)
    if asked.returncode or not asked.stdout.strip():
        raise CommandFailedError(f"{interpreter} has no qkedit: {asked.stderr.strip()[-500:]}")
    return asked.stdout.split()[0]


def _seconds(runs: tuple[CommandRun, ...]) -> Timing:
    return Timing(tuple(run.seconds for run in runs))


def table(found: dict[str, Compared]) -> str:
    """Return a Markdown table of medians, ratios and peaks."""
    lines = [
        "| command | before | after | ratio of medians | ratio of the fastest | peak before | peak after |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, compared in found.items():
        seconds = [f"{_seconds(runs).median:.2f} s" for runs in (compared.before, compared.after)]
        peaks = [
            f"{max(run.peak_bytes or 0 for run in runs) / 1e6:.0f} MB" for runs in (compared.before, compared.after)
        ]
        ratios = [f"{compared.ratio:.3f}", f"{compared.fastest_ratio:.3f}"]
        lines.append(f"| `{name}` | " + " | ".join([*seconds, *ratios, *peaks]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the commands of two versions of qkedit in turns.")
    parser.add_argument("before", metavar="PYTHON", help="an interpreter that has the earlier version")
    parser.add_argument("after", metavar="PYTHON", help="an interpreter that has the later version")
    parser.add_argument("model", metavar="MODEL", type=Path, help="a checkpoint's directory")
    parser.add_argument("--layers", default="10-20", help="layers to edit (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of everything (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the mathematics (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON, too")
    options = parser.parse_args()
    model = options.model.resolve()
    if not model.is_dir() or options.repeats < 1:
        parser.error("MODEL is a directory, and --repeats is at least 1")
    try:
        found = compare(options.before, options.after, model, options.layers, options.repeats, options.threads)
    except CommandFailedError as error:
        parser.exit(1, f"error: {error}\n")
    sys.stdout.write(table(found))
    if options.json:
        document = {
            "machine": describe_machine(model.parent, "cpu"),
            "commands": {
                name: {
                    "before": _seconds(compared.before).as_dict(),
                    "after": _seconds(compared.after).as_dict(),
                    "ratio": compared.ratio,
                    "fastest_ratio": compared.fastest_ratio,
                }
                for name, compared in found.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
