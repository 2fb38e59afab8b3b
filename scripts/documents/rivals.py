#!/usr/bin/env python
"""Measure what the other methods do to the miniature model, and write the tables of docs/rivals.md.

    python scripts/documents/rivals.py --work /tmp/rivals

The scenes, questions, scores and intervals are those of docs/laboratory.md, and all arms answer greedily. Results are
kept in the work directory, so a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from laboratory_document import render
from laboratory_document.sections import with_section

from qkedit.laboratory.arms import rival_arms
from qkedit.laboratory.demonstration import Demonstration, demonstrate
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import CAPTIONS
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.worker import ModelSpec
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

DOCUMENT = ROOT / "docs" / "rivals.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for results, kept between runs")
    parser.add_argument("--model", default="demo", help="model to measure (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scenes = SceneRange(arguments.scenes)
    identity = fingerprint(directory_of(arguments.model)) | {"scenes": asdict(scenes)}
    with ResultsFile(arguments.work / "rivals.jsonl", identity) as file:
        found = demonstrate(
            ModelSpec(arguments.model),
            rival_arms(),
            scenes,
            arguments.workers,
            file=file,
            watch=lambda done, total: print(f"{done} of {total} arms", file=sys.stderr),
        )
    text = arguments.document.read_text("utf-8")
    written = with_section(text, "scripts/documents/rivals.py", "", _lines(found, arguments.work))
    arguments.document.write_text(written, encoding="utf-8")


def _lines(found: Demonstration, work: Path) -> Iterator[str]:
    machine = describe_machine(work, "cpu")
    yield (
        f"{found.scenes.count} scenes that the model was not trained on, greedy search, {machine['date'][:10]}, "
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['libraries']['torch']}, transformers "
        f"{machine['libraries']['transformers']}."
    )
    yield ""
    yield from render.arms_lines(found.rows, CAPTIONS)
    yield ""
    yield "Adversarial questions:"
    yield ""
    yield from render.arms_lines(found.rows, "adversarial")
    yield ""
    truths = {(q.image, q.prompt): q.truth for split in found.eval_set.splits.values() for q in split}
    right = 100 * sum(truth == "yes" for truth in truths.values()) / len(truths)
    yield f'Share of "yes" in the answers to all {len(truths):,} questions, each asked once ({right:.1f} % is right):'
    yield ""
    yield "| arm | yes % |"
    yield "|:--|--:|"
    for outcome, answers in found.answered:
        said = [text.strip().lower().startswith("yes") for text in answers.yes_no]
        yield f"| {outcome.arm.name} | {100 * sum(said) / len(said):.1f} |"


if __name__ == "__main__":
    main()
