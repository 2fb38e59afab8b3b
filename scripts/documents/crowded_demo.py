#!/usr/bin/env python
"""Measure edits of the crowded miniature model beside random controls, and write the table of docs/demo.md.

    python scripts/documents/crowded_demo.py --work /tmp/crowded

Results are kept in the work directory, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from laboratory_document import render
from laboratory_document.sections import with_section

from qkedit.demo import DEMO
from qkedit.demo.worlds import CROWDED
from qkedit.laboratory.arms import BASE, Arm, controls
from qkedit.laboratory.demonstration import Demonstration, demonstrate
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import CAPTIONS, MEASURES
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.worker import ModelSpec
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of
from qkedit.selection import describe
from qkedit.spectral.suppression import Suppression
from qkedit.steering.steer_options import SteerOptions

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

DOCUMENT = ROOT / "docs" / "demo.md"


def edited_arms(seeds: int) -> tuple[Arm, ...]:
    """Return the base, `steer`'s default edit, its symmetric channel, and random controls of both."""
    full = SteerOptions(device="cpu")
    symmetric = SteerOptions(suppression=Suppression(channel="symmetric"), device="cpu")
    return (
        Arm(BASE),
        Arm("full", full),
        *controls(full, "index", seeds, "full, random modes"),
        *controls(full, "norm", seeds, "full, random directions"),
        Arm("symmetric", symmetric),
        *controls(symmetric, "index", seeds, "symmetric, random modes"),
    )


def lines(found: Demonstration, work: Path, seeds: int) -> Iterator[str]:
    """Yield the lines of the section."""
    machine = describe_machine(work, "cpu")
    yield (
        f"{found.scenes.count} held-out scenes, k 4 in layers {describe(found.layers)}, {seeds} seeds per control, "
        f"{machine['date'][:10]}, {machine['processor']}, torch {machine['libraries']['torch']}:"
    )
    yield ""
    yield from render.arms_lines(found.rows, CAPTIONS, [replace(MEASURES["cider"], title="CIDEr")])
    yield ""
    yield "Questions about absent objects that are usual beside what the scene shows:"
    yield ""
    yield from render.arms_lines(found.rows, "adversarial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of results, kept between runs")
    parser.add_argument("--scenes", type=int, default=200, help="number of scenes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each random control (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="document to write (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scenes = SceneRange(arguments.scenes, world=CROWDED.name)
    identity = fingerprint(directory_of(DEMO)) | {"scenes": scenes.as_dict(), "seeds": arguments.seeds}
    with ResultsFile(arguments.work / "crowded.jsonl", identity) as file:
        found = demonstrate(
            ModelSpec(DEMO),
            edited_arms(arguments.seeds),
            scenes,
            arguments.workers,
            file=file,
            watch=lambda done, total: print(f"{done} of {total} arms", file=sys.stderr),
        )
    text = arguments.document.read_text("utf-8")
    section = lines(found, arguments.work, arguments.seeds)
    written = with_section(text, "scripts/documents/crowded_demo.py", "", section)
    arguments.document.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
