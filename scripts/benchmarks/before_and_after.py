#!/usr/bin/env python
"""Time the commands of two versions of qkedit in pairs, and print the ratios as Markdown.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --layers 4 --out ./four-layers
    python scripts/benchmarks/before_and_after.py OLD/.venv/bin/python NEW/.venv/bin/python ./four-layers

Each version is given by an interpreter in which it is installed. Every command runs in its own process. A pair is one
run of each version; the earlier and the later one take turns to be first. A round runs one pair of every command. The
first round is not counted, since Python compiles its modules then. After `--minutes` no pair begins; the table holds
the complete pairs and their number. It shows wall time and CPU time, which other work on the machine affects least.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarking.commands import CommandFailedError, run_function
from benchmarking.disk import settle
from benchmarking.machine import describe_machine
from benchmarking.render import machine_line
from benchmarking.results import CommandRun

_ENTRY = """
from importlib.metadata import entry_points
print(*(found.value for found in entry_points(group="console_scripts", name="qkedit")))
"""
_WRITING = ("steer", "steer --layout delta")
# The output that is read again.
_KEPT = "delta"


@dataclass(frozen=True)
class Version:
    """One version: its interpreter, the function behind its command, and the directory of its outputs."""

    interpreter: str
    entry: str
    work: Path


@dataclass(frozen=True)
class Compared:
    """One command of both versions, pair by pair."""

    before: tuple[CommandRun, ...]
    after: tuple[CommandRun, ...]

    @property
    def ratio(self) -> float:
        """The ratio of median seconds, after to before."""
        return _median(_seconds(self.after)) / _median(_seconds(self.before))

    @property
    def cpu_ratio(self) -> float:
        """The ratio of median CPU seconds, after to before."""
        return _median(_cpu(self.after)) / _median(_cpu(self.before))

    @property
    def least_cpu_ratio(self) -> float:
        """The ratio of the least CPU seconds, after to before."""
        return min(_cpu(self.after)) / min(_cpu(self.before))


def compare(
    before: str, after: str, model: Path, layers: str, pairs: int, threads: int, minutes: float
) -> dict[str, Compared]:
    """Run every command of both versions in pairs; a command without a complete pair is left out.

    Raises:
        CommandFailedError: a command failed.
    """
    ends = time.monotonic() + 60 * minutes
    runs: dict[str, list[tuple[CommandRun, CommandRun]]] = {}
    with tempfile.TemporaryDirectory(prefix="qkedit-versions-", dir=model.parent) as folder:
        versions = [
            Version(interpreter, _entry(interpreter), Path(folder, side))
            for side, interpreter in (("before", before), ("after", after))
        ]
        for version in versions:
            version.work.mkdir()
        for turn in range(pairs + 1):
            for name in _commands(model, layers, Path()):
                if time.monotonic() > ends:
                    print(f"{minutes:g} minutes are over", file=sys.stderr)
                    return _compared(runs)
                print(f"{name}, pair {turn} of {pairs}", file=sys.stderr, flush=True)
                pair = _pair(versions, name, model, layers, threads, turned=turn % 2 == 1)
                if turn:
                    runs.setdefault(name, []).append(pair)
    return _compared(runs)


def _compared(runs: dict[str, list[tuple[CommandRun, CommandRun]]]) -> dict[str, Compared]:
    return {
        name: Compared(tuple(before for before, _ in pairs), tuple(after for _, after in pairs))
        for name, pairs in runs.items()
    }


def _commands(model: Path, layers: str, work: Path) -> dict[str, list[str]]:
    steer = ["steer", str(model), "--layers", layers, "--device", "cpu"]
    return {
        "--version": ["--version"],
        "--help": ["--help"],
        "steer --help": ["steer", "--help"],
        "steer --dry-run": [*steer, "--dry-run", "--out", str(work / "none")],
        "steer --layout delta": [*steer, "--layout", "delta", "--out", str(work / _KEPT)],
        "verify": ["verify", str(work / _KEPT), "--base", str(model)],
        "inspect": ["inspect", str(model), "--layers", layers, "--device", "cpu"],
        "steer": [*steer, "--out", str(work / "full")],
    }


def _pair(
    versions: list[Version], name: str, model: Path, layers: str, threads: int, *, turned: bool
) -> tuple[CommandRun, CommandRun]:
    """Run a command of both versions, and return the runs of the earlier and the later one."""
    runs: dict[Path, CommandRun] = {}
    for version in reversed(versions) if turned else versions:
        arguments = _commands(model, layers, version.work)[name]
        if name in _WRITING:
            shutil.rmtree(version.work / _KEPT, ignore_errors=True)
            settle(model, "warm")
        runs[version.work], _ = run_function(version.entry, arguments, threads, version.interpreter)
        shutil.rmtree(version.work / "full", ignore_errors=True)
    before, after = (runs[version.work] for version in versions)
    return before, after


def _entry(interpreter: str) -> str:
    """Return the function behind the command `qkedit` of an interpreter, as `module:function`."""
    asked = subprocess.run([interpreter, "-c", _ENTRY], capture_output=True, text=True)
    if asked.returncode or not asked.stdout.strip():
        raise CommandFailedError(f"{interpreter} has no qkedit: {asked.stderr.strip()[-500:]}")
    return asked.stdout.split()[0]


def _seconds(runs: Iterable[CommandRun]) -> list[float]:
    return [run.seconds for run in runs]


def _cpu(runs: Iterable[CommandRun]) -> list[float]:
    return [run.cpu_seconds or 0.0 for run in runs]


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def table(found: dict[str, Compared]) -> str:
    """Return a Markdown table of medians, ratios and peaks."""
    lines = [
        "| command | pairs | before | after | ratio | CPU before | after | ratio | least | peak before | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, compared in found.items():
        sides = (compared.before, compared.after)
        clock = [f"{_median(_seconds(runs)):.2f} s" for runs in sides]
        processor = [f"{_median(_cpu(runs)):.2f} s" for runs in sides]
        peaks = [f"{max(run.peak_bytes or 0 for run in runs) / 1e6:.0f} MB" for runs in sides]
        ratios = [f"{compared.cpu_ratio:.3f}", f"{compared.least_cpu_ratio:.3f}"]
        cells = [str(len(compared.before)), *clock, f"{compared.ratio:.3f}", *processor, *ratios, *peaks]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_dict(found: dict[str, Compared]) -> dict[str, object]:
    """Return every figure of every pair, for JSON."""
    return {
        name: {
            "before": {"seconds": _seconds(compared.before), "cpu_seconds": _cpu(compared.before)},
            "after": {"seconds": _seconds(compared.after), "cpu_seconds": _cpu(compared.after)},
            "ratio": compared.ratio,
            "cpu_ratio": compared.cpu_ratio,
            "least_cpu_ratio": compared.least_cpu_ratio,
        }
        for name, compared in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the commands of two versions of qkedit in pairs.")
    parser.add_argument("before", metavar="PYTHON", help="an interpreter that has the earlier version")
    parser.add_argument("after", metavar="PYTHON", help="an interpreter that has the later version")
    parser.add_argument("model", metavar="MODEL", type=Path, help="a checkpoint's directory")
    parser.add_argument("--layers", default="all", help="layers to edit (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs per command (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="start no pair after this time (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the mathematics (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    options = parser.parse_args()
    model = options.model.resolve()
    if not model.is_dir() or options.pairs < 1:
        parser.error("MODEL is a directory, and --pairs is at least 1")
    machine = describe_machine(model.parent, "cpu")
    try:
        found = compare(
            options.before, options.after, model, options.layers, options.pairs, options.threads, options.minutes
        )
    except CommandFailedError as error:
        parser.exit(1, f"error: {error}\n")
    if not found:
        parser.exit(1, "error: no pair is complete; raise --minutes\n")
    busy = " Busy machine." if max(machine["load_average"], os.getloadavg()[0]) > machine["cores"] + 1 else ""
    sys.stdout.write(f"{machine_line(machine)}{busy}\n\n{table(found)}")
    if options.json:
        document = {"machine": machine, "commands": as_dict(found)}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
