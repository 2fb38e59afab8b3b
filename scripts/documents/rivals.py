#!/usr/bin/env python
"""Measure the effects of the other methods on the miniature model, and write the tables of docs/rivals.md.

    python scripts/documents/rivals.py --work /tmp/rivals

The scenes, questions, scores and intervals are those of docs/laboratory.md, and decoding is greedy. Every arm, the
base included, prefills every prompt in full, so that CPU seconds can be compared; in all of them, equal pictures of a
batch are encoded once. Results are kept in the work directory, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from laboratory_document import render
from laboratory_document.rival_findings import WIDTH, rival_finding_lines
from laboratory_document.sections import with_section

from qkedit.demo.worlds import world_name_for
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.evaluation.metric import Metric, measured
from qkedit.evaluation.statistics.intervals import interval, paired
from qkedit.laboratory.answering.generation import EvalSetAnswers
from qkedit.laboratory.answering.whole_prompts import PROMPTS_AT_ONCE
from qkedit.laboratory.arms import BASE, Arm, rival_arms
from qkedit.laboratory.demonstration import Demonstration, demonstrate
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import CAPTIONS, MEASURES, RESAMPLES, Figure, Measure, Row, compare
from qkedit.laboratory.results_file import ResultsFile
from qkedit.laboratory.worker import ModelSpec
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of
from qkedit.steering.steer_options import SteerOptions

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

SCRIPT = "scripts/documents/rivals.py"
DOCUMENT = ROOT / "docs" / "rivals.md"
# Beam search, prompt by prompt, takes several times as long as the other methods.
SLOW = ("opera",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of results, kept between runs")
    parser.add_argument("--model", default="demo", help="model to measure (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes (default: %(default)s)")
    parser.add_argument(
        "--opera-scenes", type=int, default=40, help="number of scenes of opera, the slowest (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each random control (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="document to write (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    every = rival_arms(SteerOptions(device="cpu"), arguments.seeds)
    slow = [arm for arm in every if any(plugin.name in SLOW for plugin in arm.plugins)]
    parts = (
        (arguments.scenes, [arm for arm in every if arm not in slow]),
        (arguments.opera_scenes, [every[0], *slow]),
    )
    lines: list[str] = []
    sentences: list[str] = []
    for (count, arms), name in zip(parts, ("rivals", "opera"), strict=True):
        found = _measured(arguments, name, arms, SceneRange(count, world=world_name_for(arguments.model)))
        lines += [*([""] if lines else []), *_lines(found, arguments.work)]
        sentences += rival_finding_lines(found.rows, found.scenes.count) if name == "rivals" else []
    text = with_section(arguments.document.read_text("utf-8"), SCRIPT, "findings", sentences)
    written = with_section(text, SCRIPT, "", lines)
    arguments.document.write_text(written, encoding="utf-8")


def _measured(arguments: argparse.Namespace, name: str, arms: Sequence[Arm], scenes: SceneRange) -> Demonstration:
    identity = fingerprint(directory_of(arguments.model)) | {"scenes": scenes.as_dict(), "share_pictures": False}
    with ResultsFile(arguments.work / f"{name}.jsonl", identity) as file:
        return demonstrate(
            ModelSpec(arguments.model),
            arms,
            scenes,
            arguments.workers,
            file=file,
            watch=lambda done, total: print(f"{name}: {done} of {total} arms", file=sys.stderr),
            share_pictures=False,
        )


def _lines(found: Demonstration, work: Path) -> Iterator[str]:
    machine = describe_machine(work, "cpu")
    is_slow = any(plugin.name in SLOW for outcome, _ in found.answered for plugin in outcome.arm.plugins)
    yield fill(
        f"{'OPERA is the slowest by far, so it got fewer scenes. ' if is_slow else ''}"
        f"`--model {found.model_spec.model}`, {found.scenes.count} scenes that the model was not trained on, greedy "
        f"search, {machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "
        f"torch {machine['libraries']['torch']}, transformers "
        f"{machine['libraries']['transformers']}.",
        WIDTH,
    )
    yield ""
    outcomes = [outcome for outcome, _ in found.answered]
    base = next(outcome for outcome in outcomes if outcome.arm.name == BASE)
    said_yes = compare(outcomes, base, [YES])
    rows = [
        replace(row, figures={**row.figures, **yes.figures}) for row, yes in zip(found.rows, said_yes, strict=True)
    ]
    yield from render.arms_lines(rows, CAPTIONS, [replace(MEASURES["cider"], title="CIDEr")])
    yield ""
    truths = [question.truth for question in found.eval_set.splits["adversarial"]]
    right = 100 * sum(truth == "yes" for truth in truths) / len(truths)
    yield f'Adversarial questions, and the share of answers "yes" to them ({right:.0f} % is right):'
    yield ""
    yield from render.arms_lines(rows, "adversarial", [YES])
    yield ""
    answers = {outcome.arm.name: answered for outcome, answered in found.answered}
    count = sum(number for number, _ in answers[BASE].batches)
    yield fill(
        f"CPU milliseconds of one core per answer, over {count:,} captions and answers to questions in batches of up "
        f"to {PROMPTS_AT_ONCE}, with the {len(answers[BASE].batches)} batches resampled; equal pictures of a batch "
        "are encoded once:",
        WIDTH,
    )
    yield ""
    timed = [_timed(row, answers) for row in rows]
    yield from render.arms_lines(timed, "", [TIME])


# Measures in addition to the laboratory's.
YES = Measure("yes_adversarial", "adversarial", "yes_ratio", "yes")
TIME = Measure("milliseconds", "", "milliseconds", "milliseconds")
MILLISECONDS = Metric("milliseconds", sums=measured("milliseconds"))


def _timed(row: Row, answers: dict[str, EvalSetAnswers]) -> Row:
    """Return a row with the CPU time of its arms' answers, pooled over the seeds of a control."""
    own = _batches([answers[arm.name] for arm in row.arms])
    base = _batches([answers[BASE]] * len(row.arms))
    each = [
        1000 * sum(s for _, s in b) / sum(n for n, _ in b) for b in (answers[arm.name].batches for arm in row.arms)
    ]
    figure = Figure(
        interval(own, MILLISECONDS, method="bootstrap", resamples=RESAMPLES),
        min(each) if len(each) > 1 else None,
        max(each) if len(each) > 1 else None,
        None if row.name == BASE else paired(base, own, MILLISECONDS, resamples=RESAMPLES),
    )
    return replace(row, figures={TIME.name: figure})


def _batches(arms: Sequence[EvalSetAnswers]) -> list[MeasuredItem]:
    return [
        MeasuredItem(f"{number}/{place}", {"milliseconds": (1000 * seconds, count)}, group=f"batch {place}")
        for number, answers in enumerate(arms)
        for place, (count, seconds) in enumerate(answers.batches)
    ]


if __name__ == "__main__":
    main()
