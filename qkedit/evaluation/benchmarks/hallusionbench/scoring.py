"""HallusionBench (arXiv 2310.14566): the same questions about a figure, an edited figure, or none.

Officially GPT-4 judges each answer: 0 wrong, 1 right, 2 unclear, where unclear is right too if no figure was shown to
a question of the category VS. The parser `judge` reads these labels; `string` compares words instead, counts an answer
that is neither yes nor no as unclear, and its figures cannot be compared with judged ones.

* aAcc: right answers / questions.
* fAcc: figures with only right answers / figures; questions without a figure are left out.
* qAcc: questions answered correctly with every figure / questions.
* easy and hard: qAcc of only the questions about original figures (or none), and of only those about figures that were
  edited to change the answer (`visual_input` "2"). A set may have several original figures.

The rules are those of github.com/tianyi-lab/HallusionBench since its dataset has 1,129 questions (November 2023). Its
first release distinguished easy from hard by `figure_id`, as some copies of its script still do; the published
leaderboard divides by 455 easy and 430 hard questions, which only `visual_input` yields.

An id is `CATEGORY_SUBCATEGORY_SET_FIGURE_QUESTION`, such as `VD_illusion_0_0_0`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.plain_functions import Answered, Scorer
from qkedit.evaluation.benchmarks.yes_no import quotient, undefined
from qkedit.evaluation.files.answer_files import Joined, answer_in
from qkedit.evaluation.files.data_files import required
from qkedit.evaluation.files.json_rows import Row, read_rows
from qkedit.evaluation.files.records import Answer, HallusionBenchItem, Question, Score

SPLITS = ("VD", "VS")
PARSERS = ("judge", "string")
FILE = "HallusionBench.json"
_PUBLISHED = "github.com/tianyi-lab/HallusionBench"
_VISUAL_INPUTS = ("0", "1", "2")  # no figure, an original one, an edited one
_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
_PREDICTION = "model_prediction"
# The keys of a judge's label: the official script's, and a plain one.
_LABELS = ("gpt4v_output_gpt_check", "correctness")
_WORDS = {"0": "wrong", "1": "right", "2": "unclear"}
# The names that the official script prints, in its order.
_TITLES = {
    "q_acc": "Acc per question pair",
    "f_acc": "Acc per figure",
    "easy_acc": "Acc per easy question",
    "hard_acc": "Acc per hard question",
    "a_acc": "Acc per question",
}
_NOT_COMPARABLE = "string-matched, not comparable with judged numbers"
# The words yes and no, after everything around them except letters and digits is removed.
_YES_OR_NO = re.compile(r"[\W_]*(yes|no)[\W_]*")


def load_questions(data: Path, split: str | None) -> tuple[Question, ...]:
    """Return all questions, or those of one category.

    Args:
        data: a directory with HallusionBench.json, or that file.
        split: VD (visual dependent), VS (visual supplement) or None.

    Raises:
        UsageError: there is no such split.
        QkeditError: the file is missing, or a row is not a question.
    """
    _check_split(split)
    questions: dict[str, Question] = {}
    for row in read_rows(required(data, (FILE,), ("hallusionbench", "HallusionBench"), _PUBLISHED)):
        question = _question(row)
        if question.id in questions:
            raise row.wrong(f"the question {question.id!r} occurs twice")
        questions[question.id] = question
    return tuple(question for question in questions.values() if split in (None, question.fields["category"]))


def _question(row: Row) -> Question:
    category, subcategory, group, figure, question = parts = [row.identifier(key) for key in _KEYS]
    truth = row.identifier("gt_answer")
    if category not in SPLITS or truth not in ("0", "1"):
        raise row.wrong(f"category {category!r} with gt_answer {truth!r} is not in the benchmark")
    visual_input = row.identifier("visual_input")
    if visual_input not in _VISUAL_INPUTS:
        raise row.wrong(f"visual_input {visual_input!r} is not one of {', '.join(_VISUAL_INPUTS)}")
    of_set = (category, subcategory, group)
    return Question(
        id="_".join(parts),
        image="" if row.fields.get("filename") is None else row.text("filename"),
        prompt=row.text("question"),
        truth="yes" if truth == "1" else "no",
        group="_".join(of_set),
        fields={
            "category": category,
            "hard": visual_input == "2",
            # The original question of a supplement shows no figure, so it counts for none.
            "figure": None if (category, figure) == ("VS", "0") else (*of_set, figure),
            "question": (*of_set, question),
        },
    )


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return the answers of a file, or of all .json files in a directory (officially one for VD and one for VS).

    Rows are the benchmark's own with `model_prediction`, or in the common format; a judge's label is under
    `gpt4v_output_gpt_check` or `correctness`.

    Raises:
        QkeditError: there is no file, or a row is not an answer.
    """
    files = sorted(file.glob("*.json")) if file.is_dir() else [file]
    if not files:
        raise QkeditError("has no .json file", where=str(file), remedy="name the file of answers")
    rows = [row for one in files for row in read_rows(one)]
    return tuple(answer_in(row, _identifier(row), ("answer", _PREDICTION)) for row in rows)


def _identifier(row: Row) -> str:
    if "category" not in row.fields:
        return row.identifier("id")
    return "_".join(row.identifier(key) for key in _KEYS)


@Scorer
def score(given: Answered) -> Score:
    """Return the score of all questions or of one category.

    Args:
        given: answers, with a judge's labels in their fields for the rule `judge`. The split is VD, VS or None. The
            rule is `judge` or `string`, by default `judge` if there are labels. If answers may be missing, a figure
            is right if all answers about it are right; likewise a question.

    Raises:
        QkeditError: answers and questions do not match, a label is missing or is not 0, 1 or 2, or there is no such
            split or parser.
    """
    _check_split(given.split)
    if given.rule not in (None, *PARSERS):
        raise UsageError(
            f"there is no parser {given.rule!r}", where="--parser", remedy=f"choose among {', '.join(PARSERS)}"
        )
    joined = given.joined_part(lambda question: given.split in (None, question.fields["category"]))
    judged = given.rule == "judge" or (given.rule is None and any(_has_label(answer) for _, answer in joined.pairs))
    items = tuple(
        (_judged if judged else _matched)(question, answer, allows_unclear=question.fields["figure"] is None)
        for question, answer in joined.pairs
    )
    return _score(given.split, "judge" if judged else "string", joined, items)


def _judged(question: Question, answer: Answer, *, allows_unclear: bool) -> HallusionBenchItem:
    if not _has_label(answer):
        raise QkeditError(
            f"the answer {answer.id!r} has no judge's label",
            where=answer.where,
            remedy=f"give 0, 1 or 2 as {_LABELS[0]}, or compare words with --parser string",
        )
    label = next(answer.fields[key] for key in _LABELS if key in answer.fields)
    word = _WORDS.get(str(label).strip()) if isinstance(label, int | str) and not isinstance(label, bool) else None
    if word is None:
        raise QkeditError(
            f"the label {label!r} of {answer.id!r} is not one of 0 (wrong), 1 (right) and 2 (unclear)",
            where=answer.where,
            remedy="correct the label",
        )
    return _item(question, word, word, allows_unclear)


def _matched(question: Question, answer: Answer, *, allows_unclear: bool) -> HallusionBenchItem:
    parsed = match_words(answer.text)
    word = "unclear" if parsed is None else "right" if parsed == question.truth else "wrong"
    return _item(question, parsed, word, allows_unclear)


def _item(question: Question, parsed: str | None, word: str, allows_unclear: bool) -> HallusionBenchItem:
    right = word == "right" or (allows_unclear and word == "unclear")
    return HallusionBenchItem(
        question.id, parsed, str(question.truth), right, question.group, hard=question.fields["hard"]
    )


def match_words(text: str) -> str | None:
    """Return yes or no if the answer has exactly one of the two words; punctuation around words is ignored."""
    found = {match[1] for word in text.lower().split() if (match := _YES_OR_NO.fullmatch(word))}
    return found.pop() if len(found) == 1 else None


def _score(split: str | None, parser: str, joined: Joined, items: Sequence[HallusionBenchItem]) -> Score:
    judged = [(question, item.right) for (question, _), item in zip(joined.pairs, items, strict=True)]
    tallies = {
        "a_acc": (sum(right for _, right in judged), len(judged)),
        "f_acc": all_right((question.fields["figure"], right) for question, right in judged),
        "q_acc": all_right((question.fields["question"], right) for question, right in judged),
        "easy_acc": all_right((q.fields["question"], right) for q, right in judged if not q.fields["hard"]),
        "hard_acc": all_right((q.fields["question"], right) for q, right in judged if q.fields["hard"]),
    }
    metrics = {name: quotient(right, total) for name, (right, total) in tallies.items()}
    warnings = [*joined.warnings, *([_NOT_COMPARABLE] if parser == "string" else []), *undefined(metrics)]
    return Score(
        benchmark="hallusionbench",
        split=split,
        rule=parser,
        n=len(items),
        counts={
            **{f"{name}_right": right for name, (right, _) in tallies.items()},
            **{f"{name}_of": total for name, (_, total) in tallies.items()},
            **joined.counts,
        },
        metrics=metrics,
        printed={
            title: repr(round(100 * right / total, 4))
            for name, title in _TITLES.items()
            for right, total in [tallies[name]]
            if total
        },
        items=tuple(items),
        warnings=tuple(warnings),
    )


def all_right(judged: Iterable[tuple[Hashable, bool]]) -> tuple[int, int]:
    """Return the number of groups with only right answers, and the number of groups; None is not a group."""
    groups: dict[Hashable, bool] = {}
    for group, right in judged:
        if group is not None:
            groups[group] = groups.get(group, True) and right
    return sum(groups.values()), len(groups)


def _has_label(answer: Answer) -> bool:
    return any(key in answer.fields for key in _LABELS)


def _check_split(split: str | None) -> None:
    if split not in (None, *SPLITS):
        raise UsageError(f"there is no split {split!r}", where="--split", remedy=f"choose among {', '.join(SPLITS)}")
