"""Run targets in parallel, each in a process of its own, so that a hang or a crash does not end the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.loop import Tally, run_target, save
from fuzzing.registry import TARGETS
from fuzzing.watching import Writes, limit_memory

# The address space that a process may map in addition to that at its start, in megabytes; it includes thread stacks.
MAPPED = 16_000
# A process that does not handle its alarm (in a library's code) is killed after this multiple of the limit.
PATIENCE = 3


@dataclass(frozen=True)
class Order:
    """The work of one process; see `run_target`."""

    target: str
    start: int
    until: float  # on the monotonic clock, which all processes share; includes start and preparation
    findings: str
    work: str
    results: str


def run_all(names: list[str], *, jobs: int, start: int, seconds: float, findings: Path) -> list[dict[str, Any]]:
    """Run targets, `jobs` at a time, and return the result of each.

    Args:
        names: the targets.
        jobs: the number of processes at a time.
        start: the first seed.
        seconds: the time of each target.
        findings: the directory for inputs with findings.
    """

    def one(name: str) -> dict[str, Any]:
        result = _run_in_pieces(name, start, seconds, findings)
        found = len(result["findings"])
        print(
            f"{name}: {result['executions']} inputs in {result['seconds']:.0f} s, {found} finding{'s' * (found != 1)}",
            file=sys.stderr,
            flush=True,
        )
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, names))


def run_order(order: Order) -> None:
    """Run a target in this process, and record the progress before each input."""
    work = Path(order.work)
    target = TARGETS[order.target](work / "target")
    target.work.mkdir()
    with open(work / "progress", "w", encoding="utf-8") as progress:

        def note(seed: int, tally: Tally) -> None:
            progress.seek(0)
            progress.write(f"{json.dumps([seed, tally.outcomes])}\n")
            progress.flush()

        target.prepare()
        limit_memory(MAPPED)
        try:
            tally = run_target(
                target,
                order.start,
                seconds=max(0.0, order.until - time.monotonic()),
                findings=Path(order.findings),
                progress=note,
                writes=Writes(work, Path(order.findings)),
            )
        finally:
            target.close()
    Path(order.results).write_text(json.dumps(tally.as_dict()), encoding="utf-8")


def _run_in_pieces(name: str, start: int, seconds: float, findings: Path) -> dict[str, Any]:
    """Run one target; a process that ends too early is a finding, and another one continues after that input."""
    whole = Tally(name)
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        with tempfile.TemporaryDirectory(prefix="qkedit-fuzz-") as work:
            results = Path(work, "results.json")
            order = Order(name, start, begin + seconds, str(findings), work, str(results))
            ended = _watched(order)
            if results.exists():
                _add(whole, json.loads(results.read_text("utf-8")))
                break
            _add_crash(whole, order, ended)
            progress = _progress(Path(work))
            if progress is None:  # it failed before the first input, and would again
                break
            start = progress[0] + 1
    whole.seconds = time.monotonic() - begin
    return whole.as_dict()


def _watched(order: Order) -> str:
    """Run one process, and return a description of how it ended."""
    environment = {**os.environ, "TMPDIR": order.work, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__).parents[1] / "fuzz.py"), "--order", json.dumps(order.__dict__)]
    log = Path(order.work, "log")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        ) as process,
    ):
        limit = PATIENCE * TARGETS[order.target].seconds + 60
        seen, since = None, time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            progress = _progress(Path(order.work))
            if progress != seen:
                seen, since = progress, time.monotonic()
            if time.monotonic() - since > limit:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"hang: did not end within {limit:g} seconds, nor by an alarm"
    said = log.read_text("utf-8", "replace")[-1500:]
    return f"crash: ended with {process.returncode}: {said!a}"


def _progress(work: Path) -> tuple[int, dict[str, int]] | None:
    try:
        seed, outcomes = json.loads((work / "progress").read_text("utf-8").partition("\n")[0])
    except (OSError, ValueError):  # missing, or being written
        return None
    return seed, outcomes


def _add(whole: Tally, result: dict[str, Any]) -> None:
    whole.outcomes.update(result["outcomes"])
    whole.findings += result["findings"]
    whole.grown = max(whole.grown, result["grown"])


def _add_crash(whole: Tally, order: Order, ended: str) -> None:
    seed, outcomes = _progress(Path(order.work)) or (order.start, {})
    kind, _, what = ended.partition(": ")
    found: dict[str, str | int] = {
        "target": order.target, "seed": seed, "kind": kind, "what": what, "place": "the whole process", "traceback": ""
    }  # fmt: skip
    whole.outcomes.update({**outcomes, "found": outcomes.get("found", 0) + 1})
    whole.findings.append(found)
    with tempfile.TemporaryDirectory() as work:
        target = TARGETS[order.target](Path(work, "target"))
        target.work.mkdir()
        try:
            target.prepare()
            save(Path(order.findings), target, seed, found)
        except Exception as error:  # the finding itself is still reported
            print(f"{order.target}: input {seed} could not be saved ({error})", file=sys.stderr)
        finally:
            target.close()
