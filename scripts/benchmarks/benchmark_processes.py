#!/usr/bin/env python
"""Run `qkedit steer` under torchrun in several CPU processes: compare bytes and time, and kill one of them.

    python scripts/make_checkpoint.py --shape qwen2-vl-7b --out ./qwen2-vl-7b-shaped
    python scripts/benchmarks/benchmark_processes.py ./qwen2-vl-7b-shaped --write docs/scaling.md

Every run is in the delta layout, so that the processes share the mathematics and not the copy of unchanged bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarking.machine import describe_machine
from benchmarking.timing import Timing

from qkedit.errors import counted

BEGIN = "<!-- result of scripts/benchmarks/benchmark_processes.py: begin -->"
END = "<!-- result of scripts/benchmarks/benchmark_processes.py: end -->"


class ProofFailedError(Exception):
    """A run broke a promise of the documentation."""


@dataclass(frozen=True)
class Proof:
    """The results: seconds of whole runs by the number of processes, and the error of a killed run."""

    seconds: dict[int, Timing]
    files: int
    killed: str


def hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file."""
    found = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            found[str(file.relative_to(directory))] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def prove(model: Path, layers: str, sizes: list[int], repeats: int) -> Proof:
    """Run all measurements and checks. Raises ProofFailedError."""
    with tempfile.TemporaryDirectory(prefix="qkedit-processes-", dir=model.parent) as folder:
        work = Path(folder)
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        expected: dict[str, str] = {}
        for _ in range(repeats):
            for size in sizes:
                out = work / "out"
                start = time.perf_counter()
                ended = subprocess.run(_command(size, model, layers, out), capture_output=True, text=True)
                taken[size].append(time.perf_counter() - start)
                if ended.returncode:
                    raise ProofFailedError(f"{size} processes ended with {ended.returncode}: {ended.stderr[-2000:]}")
                found = hashes(out)
                expected = expected or found
                if found != expected:
                    differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
                    raise ProofFailedError(f"{size} processes wrote other bytes: {differing}")
                shutil.rmtree(out)
        killed = _killed(model, layers, work)
        return Proof({size: Timing(tuple(seconds)) for size, seconds in taken.items()}, len(expected), killed)


def _command(size: int, model: Path, layers: str, out: Path) -> list[str]:
    steer = ["-m", "qkedit", "steer", str(model), "--layers", layers, "--k", "4", "--device", "cpu"]
    steer += ["--layout", "delta", "--out", str(out)]
    if size == 1:
        return [sys.executable, *steer]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--master-port", str(port)]
    return [sys.executable, *launcher, *steer]


def _killed(model: Path, layers: str, work: Path) -> str:
    """Kill the second of two processes in the middle of its work, and return the error sentence of the run.

    Raises ProofFailedError: the run prints nothing, succeeds, or leaves files.
    """
    out = work / "out"
    running = subprocess.Popen(
        _command(2, model, layers, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _until(lambda: (work / ".out.qkedit" / "new").exists())
        _until(lambda: _second_below(running.pid) is not None)
        time.sleep(0.5)
        victim = _second_below(running.pid)
        if victim is None:
            raise ProofFailedError("the run ended before its second process could be killed")
        os.kill(victim, signal.SIGKILL)
        _, errors = running.communicate(timeout=300)
    finally:
        if running.poll() is None:
            running.kill()
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    left = sorted(os.listdir(work))
    if running.returncode == 0 or len(sentences) != 1 or left:
        raise ProofFailedError(f"a killed run ended with {running.returncode}, said {sentences} and left {left}")
    return sentences[0].replace(str(work), "…")


def _second_below(launcher: int) -> int | None:
    """Return the id of the second process that the launcher started; None while there is none."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
        except OSError:  # the process has ended
            continue
    return None


def _until(happened: Any) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        if time.monotonic() > deadline:
            raise ProofFailedError("the run did not begin to write within two minutes")
        time.sleep(0.005)


def rendered(proof: Proof, model: Path, layers: str, machine: dict[str, Any]) -> str:
    """Return the section of the document."""
    one = proof.seconds[min(proof.seconds)]
    repeats = len(one.seconds)
    lines = [
        f"`{model.name}`, layers {layers}, k 4, delta layout: all {proof.files} files have the same SHA-256 for every "
        "number of processes. One process uses all cores; `torchrun` gives each of several one thread.",
        "",
        "| processes | seconds, whole run | of one process's time |",
        "|--:|--:|--:|",
        *(
            f"| {size} | {timing.median:.1f} ({min(timing.seconds):.1f} to {max(timing.seconds):.1f}) "
            f"| {timing.median / one.median:.2f} |"
            for size, timing in proof.seconds.items()
        ),
        "",
        f"The second of two processes, killed in the middle of its work: nothing is left, and the run says "
        f"`{proof.killed}`.",
        "",
        f"({machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores; each {counted(repeats, 'run')}.)",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run steer in several processes and compare bytes and time.")
    parser.add_argument("model", metavar="MODEL", type=Path, help="a checkpoint's directory")
    parser.add_argument("--layers", default="all", help="layers to edit (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes (default: 1 2 4)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of everything (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the result into this document")
    options = parser.parse_args()
    model = options.model.resolve()
    try:
        proof = prove(model, options.layers, options.processes, options.repeats)
    except ProofFailedError as error:
        parser.exit(1, f"error: {error}\n")
    text = rendered(proof, model, options.layers, describe_machine(model.parent, "cpu"))
    sys.stdout.write(text + "\n")
    if options.write:
        document = options.write.read_text(encoding="utf-8")
        before, begin, rest = document.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            parser.exit(1, f"error: {options.write} has no place for the result ({BEGIN})\n")
        options.write.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
