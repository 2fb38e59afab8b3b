"""Run one target on inputs from consecutive seeds, until a number or a time is reached."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from fuzzing.target import Finding, Target, as_bytes
from fuzzing.watching import Hang, Writes, held_megabytes, peak_megabytes, time_limit

# Findings of one kind in one place are one fault; only the first ones are saved.
ALIKE = 3


@dataclass
class Tally:
    """The outcomes of the inputs so far.

    Attributes:
        outcomes: the number of inputs by outcome.
        findings: the findings, one entry per kind and place.
        seconds: the total time.
        grown: the growth of the process since its first inputs, in megabytes.
    """

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, str | int]] = field(default_factory=list)
    seconds: float = 0.0
    grown: int = 0

    @property
    def executions(self) -> int:
        """The number of inputs."""
        return sum(self.outcomes.values())

    def as_dict(self) -> dict[str, object]:
        """Return the tally as a JSON object."""
        # dataclasses.asdict would convert a counter to a counter of pairs.
        return {**vars(self), "outcomes": dict(self.outcomes), "executions": self.executions}


def run_target(
    target: Target,
    start: int,
    *,
    executions: int | None = None,
    seconds: float | None = None,
    findings: Path | None = None,
    progress: Callable[[int, Tally], None] = lambda seed, tally: None,
    writes: Writes | None = None,
) -> Tally:
    """Try inputs with the seeds `start`, `start + 1` …

    Args:
        target: the prepared target.
        start: the first seed.
        executions: the number of inputs, or None for a time limit.
        seconds: the time limit.
        findings: the directory for inputs with findings.
        progress: called before each input with its seed.
        writes: the monitor of writes outside the working directory.
    """
    tally = Tally(target.name)
    alike: Counter[str] = Counter()
    begin = time.monotonic()
    held = 0
    for seed in count(start):
        tally.seconds = time.monotonic() - begin
        done = seed - start
        if (executions is not None and done >= executions) or (seconds is not None and tally.seconds >= seconds):
            break
        if done == 50:
            held = held_megabytes()
        progress(seed, tally)
        found = try_seed(target, seed, writes)
        if isinstance(found, str):
            tally.outcomes[found] += 1
            continue
        tally.outcomes["found"] += 1
        key = f"{found['kind']} {found['place']} {_words(str(found['what']))}"
        alike[key] += 1
        if alike[key] == 1:
            tally.findings.append(found)
        if findings is not None and alike[key] <= ALIKE:
            save(findings, target, seed, found)
    tally.grown = max(0, held_megabytes() - held) if held else 0
    return tally


def try_seed(target: Target, seed: int, writes: Writes | None = None) -> str | dict[str, str | int]:
    """Try one input, and return its outcome or its finding."""
    peak = peak_megabytes()
    given = target.generate(generator(target, seed))
    try:
        with time_limit(target.seconds):
            outcome = target.check(given)
        if writes is not None:
            writes.check()
        if (grown := peak_megabytes() - peak) > target.megabytes:
            raise Finding("memory", f"one input made the process {grown} MB larger")
    except Finding as found:
        return _finding(target, seed, found.kind, found.what, found)
    except Hang as hang:
        return _finding(target, seed, "hang", f"more than {target.seconds:g} seconds", hang)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {ascii(str(error))[:500]}"
        return _finding(target, seed, "exception", what, error)
    return outcome.value


def generator(target: Target, seed: int) -> Random:
    """Return the random generator for the input of a seed."""
    return Random(f"{target.name} {seed}")


def save(directory: Path, target: Target, seed: int, found: dict[str, str | int]) -> None:
    """Write an input and its finding into the directory of findings."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{target.name}-{seed}"
    given = as_bytes(target.generate(generator(target, seed)))
    (directory / f"{name}.input").write_bytes(given[: 1 << 20])
    (directory / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _words(what: str) -> str:
    """Return the start of a finding without the words that vary between inputs."""
    return re.sub(r"[^a-zA-Z]+", " ", what)[:100]


def _finding(target: Target, seed: int, kind: str, what: str, error: BaseException) -> dict[str, str | int]:
    trace = traceback.extract_tb(error.__traceback__)
    # The last line of qkedit in the traceback, else that of the check.
    inside = [
        frame
        for frame in trace
        if "/qkedit/" in frame.filename.replace("\\", "/") and "/fuzzing/" not in frame.filename
    ]
    last = (inside or trace)[-1] if trace else None
    place = f"{Path(last.filename).name}:{last.lineno}" if last else ""
    return {
        "target": target.name,
        "seed": seed,
        "kind": kind,
        "what": what,
        "place": place,
        "traceback": "".join(traceback.format_tb(error.__traceback__))[-6000:],
    }
