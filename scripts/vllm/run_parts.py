#!/usr/bin/env python
"""Run every part of the comparison on vLLM, and write its tables into docs/vllm.md.

    python scripts/vllm/run_parts.py --place .vllm --begun 1700000000 [--is-new] [--quick]

scripts/test_vllm.sh runs this in an environment with vLLM. The parts that compare answers need one core each and run
two at a time; those that need both cores, or measure time, run alone. A part's output is in `results/NAME.log`. The
first part that fails ends the others, and its output is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SCRIPTS = Path(__file__).parent
# Engines in the part's own process. Threads that are bound to cores would share one with the other part.
ONE_CORE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Part:
    """One process of the comparison.

    Attributes:
        name: its name, which its files in the directory of results have.
        script: the script, in this directory.
        options: its options after `--work` and `--out`.
        environment: changes to the environment.
    """

    name: str
    script: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


# The longest first, so that both lanes end at about the same time.
COMPARED = (
    Part("families-1", "compare.py", ("--models", "demo-small,qwen2_vl,qwen2_5_vl,qwen3_vl"), ONE_CORE),
    Part(
        "families-2",
        "compare.py",
        ("--models", "llava_next,llava_onevision,internvl,idefics3,mistral3"),
        ONE_CORE,
    ),
    Part("compiled", "compare.py", ("--models", "demo-small,qwen2_vl", "--compiled"), ONE_CORE),
    Part("edits", "edits.py", (), ONE_CORE),
    # Its server needs processes of its own: it is stopped as users' servers are.
    Part("refusals", "refusals.py", (), {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
)
ALONE = (
    Part(
        "ranks",
        "compare.py",
        ("--models", "demo-small,qwen2_vl,internvl", "--ranks", "2"),
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    ),
    Part("overhead", "overhead.py", (), {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
    Part("speed", "speed.py"),
    Part("evaluation", "evaluate.py"),
)
QUICK = (Part("families", "compare.py", ("--models", "demo-small,qwen2_vl"), ONE_CORE), *COMPARED[-2:])


def run(parts: Sequence[Part], at_once: int, work: Path, results: Path, scripts: Path = SCRIPTS) -> dict[str, float]:
    """Run parts in their order, several at a time.

    Args:
        parts: the parts.
        at_once: the largest number of parts that run at a time.
        work: where checkpoints are written.
        results: the directory of the parts' results and logs.
        scripts: the directory of the scripts.

    Returns:
        The seconds that each part took.

    Raises:
        SystemExit: a part failed; its log is printed, and the other processes have ended.
    """
    waiting, running, seconds = list(parts), dict[str, tuple[subprocess.Popen[bytes], float]](), dict[str, float]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                part = waiting.pop(0)
                running[part.name] = (_started(part, work, results, scripts), time.monotonic())
            for name, (process, begun) in list(running.items()):
                if process.poll() is None:
                    continue
                seconds[name] = time.monotonic() - begun
                if process.returncode:
                    print((results / f"{name}.log").read_text("utf-8", errors="replace"), file=sys.stderr)
                    raise SystemExit(f"vLLM: {name} failed with exit code {process.returncode}")
                del running[name]
                print(f"vLLM: {name}, {seconds[name]:.0f} seconds", file=sys.stderr, flush=True)
            time.sleep(0.1)
    finally:
        for process, _ in running.values():
            _end(process)
    return seconds


def _started(part: Part, work: Path, results: Path, scripts: Path) -> subprocess.Popen[bytes]:
    """Start a part in a process group of its own, which also has the servers that it starts."""
    command = [sys.executable, str(scripts / part.script), "--work", str(work)]
    command += ["--out", str(results / f"{part.name}.json"), *part.options]
    if part.script == "compare.py":
        command += ["--references", str(work / "references")]
    print(f"vLLM: {part.name} …", file=sys.stderr, flush=True)
    with (results / f"{part.name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **part.environment},
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the processes of a part."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _ended(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, required=True, help="directory of checkpoints and results")
    parser.add_argument("--begun", type=float, required=True, help="when the whole run began, in seconds since 1970")
    parser.add_argument("--is-new", action="store_true", help="the environment was made by this run")
    parser.add_argument("--quick", action="store_true", help="compare two families and the edits, and write nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)
    place = arguments.place.resolve()
    work, results = place / "work", place / ("quick" if arguments.quick else "results")
    # Those of another revision would be taken for this one's.
    for directory in (work, results):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    (work / "references").mkdir()
    seconds = run(QUICK if arguments.quick else COMPARED, 2, work, results)
    if arguments.quick:
        return 0
    seconds |= run(ALONE, 1, work, results)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = {
        "seconds": time.time() - arguments.begun,
        "cpu seconds": used.ru_utime + used.ru_stime,
        "is new": arguments.is_new,
        "parts": seconds,
    }
    (results / "run.json").write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return subprocess.run([sys.executable, str(SCRIPTS / "write_results.py"), date, str(results)]).returncode


if __name__ == "__main__":
    sys.exit(main())
