#!/usr/bin/env python
"""Measure `qkedit score` on many answers: seconds and peak memory of the whole process, for each benchmark.

    python scripts/benchmarks/benchmark_score.py --markdown score.md
    python scripts/benchmarks/benchmark_score.py --data ./benchmarks --markdown score.md   # CHAIR and AMBER too

Questions and answers are synthetic, in each benchmark's own format: the rules do the same work for any images.
CHAIR and AMBER need their published files, below --data, and the extra `qkedit[caption]`; AMBER has only 15,220
questions. Each run is a separate process that prints the JSON envelope with every item. Use an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarking.commands import run_function
from benchmarking.machine import describe_machine
from benchmarking.results import CommandRun
from benchmarking.timing import Timing, in_turns

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.amber import scoring as amber
from qkedit.evaluation.benchmarks.chair import scoring as chair
from qkedit.evaluation.benchmarks.mme import scoring as mme

SAYINGS = (
    "Yes, there is.",
    "No.",
    "No, there is not, as far as I can see",
    "yes",
    "NO",
    "Perhaps. It is hard to say.",
)
FILLING = ("a", "photo", "of", "some", "people", "near", "the", "old", "house", "where", "it", "is", "quite", "dark")
WORDS_OF_A_CAPTION = 90


@dataclass(frozen=True)
class Task:
    """One call of `qkedit score`: its arguments, and the number of answers that it scores."""

    arguments: tuple[str, ...]
    answers: int


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def write_array(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    file.write_text(json.dumps(list(rows)))
    return str(file)


def saying(generator: random.Random) -> str:
    return generator.choice(SAYINGS)


def caption(generator: random.Random, objects: Sequence[str]) -> str:
    words = generator.choices(FILLING, k=WORDS_OF_A_CAPTION - 10) + generator.choices(objects, k=10)
    generator.shuffle(words)
    return " ".join(words).capitalize() + "."


def pope_task(work: Path, count: int, generator: random.Random) -> Task:
    questions = write_lines(
        work / "pope.json",
        (
            {
                "question_id": n,
                "image": f"{n // 6}.jpg",
                "text": "Is there a cat in the image?",
                "label": ("yes", "no")[n % 2],
            }
            for n in range(1, count + 1)
        ),
    )
    answers = write_lines(
        work / "pope_answers.jsonl", ({"question_id": n, "answer": saying(generator)} for n in range(1, count + 1))
    )
    return Task(("pope", "--questions", questions, "--answers", answers), count)


def mme_task(work: Path, count: int, generator: random.Random) -> Task:
    images = max(1, count // (2 * len(mme.TASKS)))
    for folder in ("questions", "answers"):
        (work / folder).mkdir()
    for task in mme.TASKS:
        lines = [
            f"{image}.jpg\tIs it {truth}? Please answer yes or no.\t{truth}"
            for image in range(images)
            for truth in ("Yes", "No")
        ]
        (work / "questions" / f"{task}.txt").write_text("".join(f"{line}\n" for line in lines))
        (work / "answers" / f"{task}.txt").write_text("".join(f"{line}\t{saying(generator)}\n" for line in lines))
    scored = 2 * images * len(mme.TASKS)
    return Task(("mme", "--data", str(work), "--answers", str(work / "answers")), scored)


def hallusionbench_task(work: Path, count: int, generator: random.Random) -> Task:
    rows = [
        {
            "category": "VD",
            "subcategory": "chart",
            "set_id": str(number // 6),
            "figure_id": str(number // 3 % 2),
            "visual_input": str(1 + number // 3 % 2),
            "question_id": str(number % 3),
            "question": "Is the left bar the longest?",
            "gt_answer": str(number % 2),
            "filename": f"./VD/chart/{number // 6}_{number // 3 % 2}.png",
        }
        for number in range(count)
    ]
    judged = (
        row | {"model_prediction": saying(generator), "gpt4v_output_gpt_check": generator.choice("012")}
        for row in rows
    )
    questions, answers = (
        write_array(work / "hallusion.json", rows),
        write_array(work / "hallusion_answers.json", judged),
    )
    return Task(("hallusionbench", "--questions", questions, "--answers", answers), count)


def custom_task(work: Path, count: int, generator: random.Random) -> Task:
    objects = [f"thing{number}" for number in range(80)]
    questions = write_lines(
        work / "custom.jsonl",
        (
            {"id": n, "image": f"{n}.jpg", "question": "Describe.", "truth": generator.sample(objects, 4)}
            for n in range(count)
        ),
    )
    answers = write_lines(
        work / "custom_answers.jsonl", ({"id": n, "answer": caption(generator, objects)} for n in range(count))
    )
    return Task(("custom", "--questions", questions, "--answers", answers), count)


def chair_task(work: Path, count: int, generator: random.Random, data: Path) -> Task:
    objects = chair.load_synonyms(data).objects
    images = [question.id for question in chair.load_questions(data)][:count]
    answers = write_array(
        work / "chair_answers.json",
        ({"image_id": int(image), "caption": caption(generator, objects)} for image in images),
    )
    return Task(("chair", "--data", str(data), "--answers", answers), len(images))


def amber_task(work: Path, generator: random.Random, data: Path) -> Task:
    questions = amber.load_questions(data)
    objects = sorted(
        {name for question in questions if not isinstance(question.truth, str) for name in question.truth}
    )
    answers = write_array(
        work / "amber_answers.json",
        (
            {
                "id": int(question.id),
                "response": saying(generator) if isinstance(question.truth, str) else caption(generator, objects),
            }
            for question in questions
        ),
    )
    return Task(("amber", "--data", str(data), "--answers", answers), len(questions))


def tasks(work: Path, count: int, data: Path | None) -> dict[str, Task]:
    """Generate questions and answers of every benchmark."""
    generator = random.Random(0)
    made = {
        "POPE": pope_task(work, count, generator),
        "MME": mme_task(work, count, generator),
        "HallusionBench": hallusionbench_task(work, count, generator),
        "custom captions": custom_task(work, count, generator),
    }
    if data is not None:
        made["CHAIR"] = chair_task(work, count, generator, data)
        made["AMBER"] = amber_task(work, generator, data)
    return made


@dataclass(frozen=True)
class Measured:
    """One run of a command, and the processor time it took, which other work on the machine hardly changes."""

    command: CommandRun
    processor: float


def measure(made: Mapping[str, Task], repeats: int) -> dict[str, list[Measured]]:
    """Score every task `repeats` times, in turns."""

    def run(task: Task) -> Callable[[], Measured]:
        return lambda: measured(["score", *task.arguments, "--json"])

    return in_turns(repeats, {name: run(task) for name, task in made.items()})


def measured(arguments: list[str]) -> Measured:
    before = os.times()
    command, _ = run_function("qkedit.cli.app:run", arguments, threads=1)
    after = os.times()
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return Measured(command, user + system)


def markdown(made: Mapping[str, Task], found: Mapping[str, Sequence[Measured]], work: Path) -> str:
    """Return the results as Markdown."""
    machine = describe_machine(work, "cpu")
    rows = []
    for name, runs in found.items():
        answers = made[name].answers
        seconds, processor = (
            Timing(tuple(run.command.seconds for run in runs)),
            Timing(tuple(r.processor for r in runs)),
        )
        peak = max(run.command.peak_bytes or 0 for run in runs)
        rows.append(
            f"| {name} | {answers:,} | {spread(seconds)} | {spread(processor)} "
            f"| {1e6 * processor.median / answers:.0f} | {peak / 1e6:.0f} MB |"
        )
    return "\n".join(
        [
            f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, Python {machine['python']}, "
            f"qkedit {machine['libraries']['qkedit']}, {machine['date']}, load {machine['load_average']:.2f}.",
            "",
            "| benchmark | answers | seconds | processor seconds | µs per answer | peak memory |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Medians, fastest and slowest in brackets. Processor seconds are the command's processor time, "
            "from which the microseconds are computed. On an idle machine both columns of seconds are equal.",
            "",
        ]
    )


def spread(timing: Timing) -> str:
    return f"{timing.median:.2f} ({min(timing.seconds):.2f}–{max(timing.seconds):.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answers", type=int, default=100_000, help="number of answers per benchmark")
    parser.add_argument("--data", type=Path, help="directory of the published files of CHAIR and AMBER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="also write the table as Markdown")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            made = tasks(work, options.answers, options.data)
        except QkeditError as error:
            sys.exit(f"error: {error}")
        text = markdown(made, measure(made, options.repeats), work)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
