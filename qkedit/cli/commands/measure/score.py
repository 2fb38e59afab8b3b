"""`qkedit score`: score existing answers by a benchmark's own rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from qkedit.cli import completion
from qkedit.cli.delivery import deliver
from qkedit.cli.flags.evaluation import (
    AllowMissingOption,
    AlsoOption,
    CacheGroundTruthOption,
    DataOption,
    NormaliseOption,
    ParserOption,
    QuestionsOption,
    SimilarityOption,
    SplitOption,
    VariantOption,
    WriteTruthOption,
    chosen_rule,
    required_data,
    warn_of_scores,
)
from qkedit.cli.flags.flag import flag
from qkedit.cli.output import command
from qkedit.errors import UsageError


def score(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="pope, repope, chair, mme, amber, hallusionbench, coco-caption, custom or choice.",
            autocompletion=completion.benchmarks,
        ),
    ],
    answers: Annotated[
        Path, flag("--answers", "-a", help="The answers, a directory with several files, or that of a run.")
    ],
    data: DataOption = None,
    questions: QuestionsOption = None,
    split: SplitOption = None,
    parser: ParserOption = None,
    variant: VariantOption = None,
    normalise: NormaliseOption = False,
    also: AlsoOption = None,
    similarity: SimilarityOption = None,
    cache_ground_truth: CacheGroundTruthOption = None,
    write_truth: WriteTruthOption = None,
    allow_missing: AllowMissingOption = False,
    per_item: Annotated[
        Path | None, flag("--per-item", help="Write one JSON line per answer, with how it was scored.")
    ] = None,
) -> None:
    """Score answers by a benchmark's own rules; no model is needed.

    Answers come in the benchmark's own format or as JSON lines with id and answer.

    Example: qkedit score pope --answers answers.jsonl --data ./POPE --split adversarial
    """
    with command(context) as output:
        from rich.console import Group

        from qkedit.evaluation.benchmarks.chair.ground_truth import TRUTH_ENDINGS
        from qkedit.evaluation.benchmarks.registry import benchmark_named
        from qkedit.evaluation.files.score_json import score_as_dict
        from qkedit.evaluation.runs.scoring import score_files
        from qkedit.report.files import check_target, write_file
        from qkedit.report.runs.scores import items_as_lines, score_tables

        chosen = benchmark_named(benchmark).with_metrics(also or ())
        rule = chosen_rule(chosen, parser, variant, normalise)
        source = required_data(data, questions)
        if per_item is not None:
            _refuse_input(per_item, (answers, source))
            check_target(per_item, ("",), "--per-item")
        if write_truth is not None:
            output.warn("--write-truth is now --cache-ground-truth; the old name works until version 1.0")
        cached = cache_ground_truth or write_truth
        if cached is not None:
            check_target(cached, TRUTH_ENDINGS, "--cache-ground-truth")
        named = {"similarity": similarity, "cache_ground_truth": cached}
        scores = score_files(
            chosen,
            answers=answers,
            data=source,
            split=split,
            rule=rule,
            allow_missing=allow_missing,
            files={name: file for name, file in named.items() if file is not None},
        )
        warn_of_scores(output, scores)
        files: dict[Path, Callable[[], object]] = {}
        if per_item is not None:
            files[per_item] = lambda: write_file(per_item, items_as_lines(scores, without=chosen.aggregates).encode())
        fields = {"results": [score_as_dict(scored) for scored in scores]}
        deliver(output, fields, Group(*score_tables(chosen.title, scores)), files, done=[cached])


def _refuse_input(target: Path, inputs: Sequence[Path]) -> None:
    """Refuse to overwrite an input."""
    if any(target.exists() and read.exists() and target.samefile(read) for read in inputs):
        raise UsageError(f"{target} is an input file", where="--per-item", remedy="name another file")
