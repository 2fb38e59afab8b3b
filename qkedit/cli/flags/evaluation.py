"""The options of commands about benchmarks, their checks, and common warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qkedit.cli.flags.flag import flag
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.cli.output import Output
    from qkedit.evaluation.benchmarks.registry import Benchmark
    from qkedit.evaluation.files.records import Score
    from qkedit.evaluation.runs.tasks import Task

DataOption = Annotated[
    Path | None, flag("--data", help="The directory with the benchmark's published files; see docs/evaluation.md.")
]
QuestionsOption = Annotated[Path | None, flag("--questions", help="Instead of --data: one file of questions.")]
SplitOption = Annotated[str | None, flag("--split", help="Only this split: random, existence, VD, …")]
ParserOption = Annotated[
    str | None,
    flag("--parser", help="Another rule for yes and no: official, vcd, opera, repope; judge or string; normalised."),
]
VariantOption = Annotated[str | None, flag("--variant", help="Another rule for captions: official, wordnet or words.")]
AllowMissingOption = Annotated[
    bool, flag("--allow-missing", help="Score the answers there are, and report the number of missing ones.")
]
AlsoOption = Annotated[
    list[str] | None,
    flag(
        "--also",
        help="COCO captions: another metric, meteor or spice, which take Java, memory and time; may be given twice.",
    ),
]
SimilarityOption = Annotated[
    Path | None, flag("--similarity", help="AMBER: a table of similar words, where spaCy's model is not installed.")
]
NormaliseOption = Annotated[
    bool,
    flag("--normalise", help="AMBER: take the first word of an answer; our rule, the same as --parser normalised."),
]
CacheGroundTruthOption = Annotated[
    Path | None,
    flag("--cache-ground-truth", help="CHAIR: write the objects in COCO's annotations to NAME_gt_objects.json.gz."),
]
WriteTruthOption = Annotated[
    Path | None, flag("--write-truth", help="The same as --cache-ground-truth, by its old name.", hidden=True)
]


def benchmark_flag(panel: str | None = None) -> Any:
    """Return the flag that names benchmarks, in a panel of the help page."""
    return flag(
        "--benchmark",
        "-b",
        panel=panel,
        help="pope, repope, chair, mme, amber, hallusionbench, coco-caption, custom or choice, or one split such as "
        "pope.adversarial; may be given several times.",
    )


def required_data(data: Path | None, questions: Path | None) -> Path:
    """Return the path of the questions. Raises UsageError if no option gives it."""
    if questions is not None:
        if not questions.is_file():
            raise UsageError(f"{questions} is not a file", where="--questions", remedy="name a file of questions")
        return questions
    if data is None:
        raise UsageError("no questions are given", where="--data", remedy="name a directory, or --questions FILE")
    return data


def check_benchmarks(benchmarks: Sequence[str]) -> None:
    """Refuse an unknown benchmark before anything that its questions would need. Raises UsageError."""
    from qkedit.evaluation.benchmarks.registry import benchmark_named

    for text in benchmarks:
        benchmark_named(text.partition(".")[0])


def named_tasks(
    benchmarks: Sequence[str],
    splits: Sequence[str],
    data: Path,
    max_new_tokens: int | None,
    *,
    also: Sequence[str] = (),
    parser: str | None = None,
    variant: str | None = None,
) -> list[Task]:
    """Return the tasks. Raises UsageError for an unknown or repeated benchmark or split.

    Each benchmark takes those further metrics that it has, and the parser or variant if it has it, or else its own; an
    option that none of them takes is refused.
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.tasks import tasks_of

    if not benchmarks:
        raise UsageError("no benchmark is named", where="--benchmark", remedy="name one, such as pope")
    if splits and (len(benchmarks) > 1 or "." in benchmarks[0]):
        raise UsageError(
            "is for one benchmark without a split of its own",
            where="--split",
            remedy="write --benchmark pope.adversarial and so on",
        )
    tasks: list[Task] = []
    chosen = [benchmark_named(text.partition(".")[0]) for text in benchmarks]
    offered = {name for one in chosen for name in one.optional_metrics}
    chosen[0].with_metrics([name for name in also if name not in offered])
    rules = {"parser": parser, "variant": variant}
    for kind, rule in rules.items():
        of_kind = [one for one in chosen if one.rule_kind == kind]
        if of_kind and not any(rule in one.rules for one in of_kind):
            of_kind[0].check_rule(rule)
    taken = {one.rule_kind for one in chosen}
    chosen_rule(chosen[0], None if "parser" in taken else parser, None if "variant" in taken else variant)
    for text, one in zip(benchmarks, chosen, strict=True):
        own = text.partition(".")[2]
        wanted = [own] if own else list(dict.fromkeys(splits))
        asked = one.with_metrics([name for name in also if name in one.optional_metrics])
        rule = rules[one.rule_kind]
        tasks += tasks_of(asked, data, wanted, rule=rule if rule in one.rules else None, max_new_tokens=max_new_tokens)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is named twice", where="--benchmark", remedy="name it once")
    return tasks


def chosen_rule(benchmark: Benchmark, parser: str | None, variant: str | None, normalise: bool = False) -> str | None:
    """Return the named parser or variant. Raises UsageError if the benchmark does not have it."""
    if normalise:
        if parser not in (None, "normalised"):
            raise UsageError(
                f"another parser is named, {parser!r}", where="--normalise", remedy="leave one of them out"
            )
        parser = "normalised"
    given = {"parser": parser, "variant": variant}
    for kind, name in given.items():
        if name is not None and kind != benchmark.rule_kind:
            raise UsageError(
                f"{benchmark.title} is scored by {benchmark.rule_kind}s",
                where=f"--{kind}",
                remedy=f"use --{benchmark.rule_kind}",
            )
    return given[benchmark.rule_kind]


def warn_of_scores(output: Output, scores: Sequence[Score]) -> None:
    """Print the warnings of each score, with its split."""
    for score in scores:
        for sentence in score.warnings:
            output.warn(sentence if score.split is None else f"{score.split}: {sentence}")
