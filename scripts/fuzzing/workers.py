"""Run targets side by side, each in a process of its own, which may hang or be killed without an end to the rest."""

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

# Megabytes of addresses that a process may map beyond what it has when it begins; threads' stacks are among them.
MAPPED = 16_000
# A process that does not hear its alarm (in a library's code) is killed after this many times the limit.
PATIENCE = 3


@dataclass(frozen=True)
class Order:
    """What one process is to do; see `run_target`."""

    target: str
    start: int
    until: float  # by the monotonic clock, which all processes share; starting and preparing count
    findings: str
    work: str
    results: str


def run_all(names: list[str], *, jobs: int, start: int, seconds: float, findings: Path) -> list[dict[str, Any]]:
    """Run targets, `jobs` at a time, and return what became of each.

    Args:
        names: the targets.
        jobs: processes at a time.
        start: the first seed.
        seconds: for each target.
        findings: where inputs are saved that found something.
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
    """Do what one process is to do: run a target, and write down how far it is before each input."""
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
    """Run one target; a process that ends too early is a finding, and another one goes on behind that input."""
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
            if progress is None:  # it could not even begin, and would not the next time
                break
            start = progress[0] + 1
    whole.seconds = time.monotonic() - begin
    return whole.as_dict()


def _watched(order: Order) -> str:
    """Run one process, and return how it ended."""
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
    except (OSError, ValueError):  # not there yet, or being written
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
        except Exception as error:  # what is saved is a help; the finding itself stands
            print(f"{order.target}: input {seed} could not be saved ({error})", file=sys.stderr)
        finally:
            target.close()
