#!/usr/bin/env python
"""Measure the miniature model's attention and its answers about depth, and write two sections of docs/laboratory.md.

    python scripts/documents/attention_and_depth.py --work /tmp/depth

The depth questions are asked in words, by `qkedit eval --benchmark choice`, and as forced choices: of the base, with
DSCR on true depth, and with DSCR on shuffled depth. Decoding is greedy, and all random choices are seeded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from laboratory_document.sections import with_section

import qkedit
from qkedit.demo.depth_questions import ORDERS, DepthQuestion, depth_questions
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import HELD_OUT_SEED, make_scenes
from qkedit.demo.worlds import world_name_for, world_named
from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis
from qkedit.evaluation.benchmarks.choice import METRICS
from qkedit.evaluation.files.records import MeasuredItem
from qkedit.evaluation.runs.evaluate import Finished
from qkedit.evaluation.statistics.intervals import interval, paired
from qkedit.laboratory.depth_choices import (
    ARMS,
    BASE,
    CAPTION,
    CAPTION_ORDERS,
    QUESTION,
    SHUFFLED_DEPTH,
    TRUE_DEPTH,
    forced_choices,
)
from qkedit.report.attention_plot import attention_plot
from qkedit.report.attention_table import KINDS, figures, sentences
from qkedit.runtime.generation import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

from benchmarking.machine import describe_machine  # noqa: E402

SCRIPT = "scripts/documents/attention_and_depth.py"
ATTENTION, DEPTH = "attention", "depth questions"
ACCURACY = METRICS[0]
RESAMPLES = 2_000
WIDTH = 119

# Items by form, order and arm.
Found = Mapping[tuple[str, str, str], Sequence[MeasuredItem]]


@dataclass(frozen=True)
class Depth:
    """The results of the depth questions: the questions, the forced choices, and the run of `eval`."""

    questions: Sequence[DepthQuestion]
    found: Found
    in_words: Finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of the scenes and the run of eval")
    parser.add_argument("--model", default="demo", help="model to measure (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=150, help="scenes for attention (default: %(default)s)")
    parser.add_argument("--asked", type=int, default=120, help="scenes for depth questions (default: %(default)s)")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="directory of the documents (default: %(default)s)"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    document = arguments.docs / "laboratory.md"
    started = time.monotonic()
    attention = qkedit.attention(arguments.model, scenes=arguments.scenes, batch_size=32, dtype="float32")
    plot = attention_plot(attention, f"{arguments.model}, {arguments.scenes} scenes", "png")
    (arguments.docs / "images" / "laboratory-attention.png").write_bytes(plot)
    lines = [*attention_lines(attention), "", _where(arguments, time.monotonic() - started)]
    text = with_section(document.read_text("utf-8"), SCRIPT, ATTENTION, lines)
    started = time.monotonic()
    depth = measure_depth(arguments.model, arguments.asked, arguments.work)
    lines = [*depth_lines(depth), "", _where(arguments, time.monotonic() - started)]
    document.write_text(with_section(text, SCRIPT, DEPTH, lines), encoding="utf-8")


def measure_depth(model: str, count: int, work: Path) -> Depth:
    """Ask all questions in words with `eval`, and as forced choices in every arm."""
    scenes = list(make_scenes(count, HELD_OUT_SEED, world=world_named(world_name_for(model))))
    questions = depth_questions(scenes)
    write_scenes(scenes, work / "scenes")
    in_words = qkedit.evaluate(
        model,
        "choice",
        data=work / "scenes",
        images=work / "scenes" / "images",
        out=work / "run",
        dtype="float32",
        batch_size=32,
        overwrite=True,
    )
    loaded = load(model, dtype="float32")
    by_number = {scene.number: scene for scene in scenes}
    found = {}
    for form, orders in ((CAPTION, CAPTION_ORDERS), (QUESTION, tuple(ORDERS))):
        for order in orders:
            asked = [question for question in questions if question.order == order]
            for arm in ARMS:
                found[form, order, arm] = forced_choices(loaded, by_number, asked, form, arm)
                print(f"{form}, {order}, {arm}: {len(asked)} questions", file=sys.stderr)
    return Depth(questions, found, in_words)


def attention_lines(found: AttentionDiagnosis) -> Iterator[str]:
    """Yield the tables of a diagnosis in Markdown, and its sentences."""
    groups = ("first", "before", "image", "behind", "answer")
    for kind, title in KINDS.items():
        yield f"{title[0].upper()}{title[1:]}, shares in %; on the right without the first column:"
        yield ""
        yield f"| layer | {' | '.join(groups)} | {' | '.join(groups[1:])} |"
        yield "|--:|" + "--:|" * (2 * len(groups) - 1)
        for layer in found.layers:
            shares = getattr(layer, kind)
            if shares is not None:
                with_first, without = figures(shares)
                yield f"| {layer.layer} | {' | '.join([*with_first, *without])} |"
        yield ""
    for sentence in sentences(found):
        yield f"* {' '.join(sentence.split())}"
    yield ""
    yield "![Shares of attention by layer, and the visual attention ratio](images/laboratory-attention.png)"


def depth_lines(depth: Depth) -> Iterator[str]:
    """Yield the accuracies of all forms, orders and arms in Markdown."""
    (score,) = depth.in_words.scores
    shares = {name: 100 * (value or 0) for name, value in score.metrics.items()}
    overlapping = sum(question.overlap for question in depth.questions)
    distance = sum(question.distance for question in depth.questions) / len(depth.questions)
    yield fill(
        f"{len(depth.questions)} questions about {len({q.scene for q in depth.questions})} scenes; the boxes of "
        f"{overlapping} pairs overlap, and their depths differ by {distance:.2f} on average. "
        f"**The chance level is {shares['chance']:.0f} %.**",
        WIDTH,
    )
    yield ""
    yield fill(
        f"Asked in words (`qkedit eval --benchmark choice`), {shares['named']:.1f} % of the answers name exactly one "
        f"of the two objects, and {shares['accuracy']:.1f} % are right.",
        WIDTH,
    )
    yield ""
    yield "Forced choice, right answers in % with 95 % intervals over scenes:"
    yield ""
    yield f"| form | order | n | {' | '.join(ARMS)} | DSCR − base | DSCR − shuffled |"
    yield "|:--|:--|--:|" + "--:|" * (len(ARMS) + 2)
    for form, order in dict.fromkeys((form, order) for form, order, _ in depth.found):
        arms = {arm: depth.found[form, order, arm] for arm in ARMS}
        cells = [_accuracy(items) for items in arms.values()]
        cells += [_difference(arms[before], arms[TRUE_DEPTH]) for before in (BASE, SHUFFLED_DEPTH)]
        yield f"| {form} | {order} | {len(arms[BASE])} | {' | '.join(cells)} |"
    yield ""
    for sentence in depth_findings(depth.found):
        yield fill(f"* {sentence}", WIDTH, subsequent_indent="  ")


def depth_findings(found: Found) -> Iterator[str]:
    """Yield what the table shows, by rules: an interval beside the chance level or zero, or not."""
    for form in dict.fromkeys(form for form, _, _ in found):
        orders = [order for other, order, arm in found if other == form and arm == BASE]
        above = []
        for order in orders:
            low = interval(found[form, order, BASE], ACCURACY, method="bootstrap", resamples=RESAMPLES).low
            above += [order] if low is not None and low > 0.5 else []
        decided = {
            before: [
                order for order in orders if _is_decided(found[form, order, before], found[form, order, TRUE_DEPTH])
            ]
            for before in (BASE, SHUFFLED_DEPTH)
        }
        yield (
            f"Form {form}: the base is above chance in {_listed(above, orders)}. DSCR differs from the base in "
            f"{_listed(decided[BASE], orders)}, and from DSCR with shuffled depth in "
            f"{_listed(decided[SHUFFLED_DEPTH], orders)}."
        )


def _listed(some: Sequence[str], every: Sequence[str]) -> str:
    return f"{len(some)} of {len(every)} orders" + (f" ({', '.join(some)})" if some else "")


def _is_decided(before: Sequence[MeasuredItem], after: Sequence[MeasuredItem]) -> bool:
    found = paired(before, after, ACCURACY, resamples=RESAMPLES)
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high


def _accuracy(items: Sequence[MeasuredItem]) -> str:
    found = interval(items, ACCURACY, method="bootstrap", resamples=RESAMPLES)
    return f"{100 * (found.value or 0):.1f} [{100 * (found.low or 0):.1f}, {100 * (found.high or 0):.1f}]"


def _difference(before: Sequence[MeasuredItem], after: Sequence[MeasuredItem]) -> str:
    found = paired(before, after, ACCURACY, resamples=RESAMPLES)
    values = (100 * (value or 0) for value in (found.value, found.low, found.high))
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values).replace("-", "−")


def _where(arguments: argparse.Namespace, seconds: float) -> str:
    machine = describe_machine(arguments.work, "cpu")
    return fill(
        f"(`--model {arguments.model}`, "
        f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores shared with other work, "
        f"{seconds / 60:.0f} min; torch {machine['libraries']['torch']}, transformers "
        f"{machine['libraries']['transformers']}.)",
        WIDTH,
    )


if __name__ == "__main__":
    main()
