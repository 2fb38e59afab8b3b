"""Write the results of a fuzzing run as JSON and as a section of the document."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarking.machine import describe_machine

from fuzzing.registry import TARGETS

BEGIN, END = "<!-- result of scripts/fuzz.py: begin -->", "<!-- result of scripts/fuzz.py: end -->"


def summary(results: list[dict[str, Any]], *, start: int, seconds: float, jobs: int, work: Path) -> dict[str, Any]:
    """Return the result of a run, for JSON.

    Args:
        results: the result of `run_all`.
        start: the first seed.
        seconds: the time of the whole run.
        jobs: the number of processes at a time.
        work: the working directory.
    """
    return {
        "commit": _commit(),
        "machine": describe_machine(work, "cpu"),
        "seed": start,
        "seconds": seconds,
        "jobs": jobs,
        "targets": [{key: value for key, value in result.items()} for result in results],
    }


def render(document: Mapping[str, Any]) -> str:
    """Return a run's result as Markdown."""
    return "\n".join(_lines(document)) + "\n"


def put_into(text: str, part: str) -> str:
    """Return a document with the section between the two marks replaced. Raises ValueError without marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part}\n{END}{after}"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    machine, targets = document["machine"], document["targets"]
    executions = sum(target["executions"] for target in targets)
    found = [finding for target in targets for finding in target["findings"]]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    count = f"{len(found) or 'no'} finding{'s' * (len(found) != 1)}"
    yield (
        f"{executions:,} inputs to {len(targets)} targets in {document['seconds'] / 60:.0f} minutes on "
        f"{document['jobs']} core{'s' * (document['jobs'] != 1)}, {machine['date'][:10]}, "
        f"commit {document['commit']}, first seed {document['seed']}: {count}. "
        f"{machine['processor']}, Python {machine['python']}, {libraries}."
    )
    yield ""
    yield "| target | what is generated | inputs | accepted | refused | findings |"
    yield "|:--|:--|--:|--:|--:|--:|"
    for target in targets:
        outcomes = target["outcomes"]
        yield (
            f"| `{target['target']}` | {TARGETS[target['target']].subject} | {target['executions']:,} "
            f"| {outcomes.get('accepted', 0):,} | {outcomes.get('refused', 0):,} | {len(target['findings'])} |"
        )
    for finding in found:
        yield ""
        where = f"`{finding['target']}`, seed {finding['seed']}"
        yield f"* {where}: {finding['kind']} in {finding['place']}: {finding['what']}"


def _commit() -> str:
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    ended = subprocess.run(described, capture_output=True, text=True, cwd=Path(__file__).parent)
    return ended.stdout.strip() or "unknown"
