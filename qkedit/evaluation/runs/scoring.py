"""Score files: find questions and answers, determine the splits, and score each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.registry import Benchmark
from qkedit.evaluation.files.records import Answer, Score
from qkedit.evaluation.runs.run_files import ANSWERS, RUN_FILE

_SUFFIXES = (".jsonl", ".json")


def score_files(
    benchmark: Benchmark,
    *,
    answers: Path,
    data: Path,
    split: str | None = None,
    rule: str | None = None,
    allow_missing: bool = False,
    files: Mapping[str, Path] | None = None,
) -> tuple[Score, ...]:
    """Return the scores of the answers in a file or a directory, one per split.

    Without a split, every answered split is scored. Where ids start again in each split (POPE, RePOPE), a file of
    answers does not show its split, unless its rows have the key `split`, it is in a directory with one file per
    split, or the data has the questions of only one split.

    Args:
        benchmark: the benchmark whose rules are used.
        answers: a file in the benchmark's format or the common one, a directory of such files, or a run's directory.
        data: the directory with the published files, or one file of questions.
        split: the one split to score.
        rule: a parser or variant; the benchmark's default if None.
        allow_missing: leave out questions without an answer instead of refusing.
        files: further files that the benchmark's questions take.

    Raises:
        QkeditError: the answers cannot be scored completely; then no part is scored.
    """
    benchmark.check_rule(rule)
    if (answers / RUN_FILE).is_file():
        answers /= ANSWERS
        files_of_run = _of_run(benchmark, answers, split)
    else:
        files_of_run = [answers]
    if benchmark.ids_restart_per_split:
        parts = _of_each_split(benchmark, answers, data, split)
    else:
        parts = [(split, [answer for file in files_of_run for answer in benchmark.load_answers(file)])]
    scores: list[Score] = []
    for name, given in parts:
        questions = benchmark.load_questions(data, None if benchmark.single_question_set else name, rule, files)
        scores += benchmark.scores(questions, given, split=name, rule=rule, allow_missing=allow_missing)
    return tuple(scores)


def _of_run(benchmark: Benchmark, answers: Path, split: str | None) -> list[Path]:
    """Return the files of a run that hold its answers to a benchmark, or to one of its splits."""
    files = sorted(answers.glob("*.jsonl"))
    asked = [file for file in files if file.stem == benchmark.name or file.stem.startswith(f"{benchmark.name}.")]
    of_split = [file for file in asked if file.stem == f"{benchmark.name}.{split}"]
    if not asked:
        raise QkeditError(
            f"the run holds no answers to {benchmark.title}",
            where=str(answers.parent),
            remedy=f"it holds {', '.join(file.stem for file in files) or 'none at all'}",
        )
    return of_split or asked


def _of_each_split(
    benchmark: Benchmark, answers: Path, data: Path, split: str | None
) -> Sequence[tuple[str | None, Sequence[Answer]]]:
    """Return each split to score with its answers, for a benchmark whose ids do not distinguish the splits."""
    if answers.is_dir():
        return _of_directory(benchmark, answers, data, split)
    given = benchmark.load_answers(answers)
    if all(answer.fields.get("split") is None for answer in given):
        return [(_only_split(benchmark, answers, data, split), given)]
    apart: dict[str, list[Answer]] = {name: [] for name in benchmark.splits}
    for answer in given:
        name = answer.fields.get("split")
        if not isinstance(name, str) or name not in apart:
            raise QkeditError(
                "the answer does not name its split, as others do" if name is None else f"there is no split {name!r}",
                where=answer.where,
                remedy=f"name one of {', '.join(apart)} in each row",
            )
        apart[name].append(answer)
    if split is not None and not apart.get(split):
        raise QkeditError(f"has no answers to the split {split!r}", where=str(answers), remedy="name another split")
    return [(name, part) for name, part in apart.items() if part and split in (None, name)]


def _of_directory(
    benchmark: Benchmark, answers: Path, data: Path, split: str | None
) -> Sequence[tuple[str | None, Sequence[Answer]]]:
    wanted = benchmark.splits_in(data) if split is None else (split,)
    parts = []
    for name in wanted:
        stems = (name, f"{benchmark.name}.{name}")
        files = [answers / f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]
        there = [file for file in files if file.is_file()]
        if len(there) > 1:
            raise QkeditError(
                f"both {there[0].name} and {there[1].name} are answers to {name}",
                where=str(answers),
                remedy="keep only one of them",
            )
        if there:
            parts.append((name, benchmark.load_answers(there[0])))
    if not parts:
        raise QkeditError(
            f"has no file of answers to {' or '.join(map(str, wanted))}",
            where=str(answers),
            remedy=f"rename a file to {wanted[0]}.jsonl, or name one file and its --split",
        )
    return parts


def _only_split(benchmark: Benchmark, answers: Path, data: Path, split: str | None) -> str | None:
    if split is not None:
        return split
    splits = benchmark.splits_in(data)
    if len(splits) > 1:
        raise UsageError(
            f"{answers.name} does not name its split of {benchmark.title}, and all splits have the same ids",
            where="--split",
            remedy=f"choose among {', '.join(map(str, splits))}",
        )
    return splits[0]
