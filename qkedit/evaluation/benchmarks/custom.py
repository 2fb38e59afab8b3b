"""A user's own questions: JSON lines `id, image, question, truth`.

If every truth is yes or no, answers are scored as POPE's are. If every truth is the list of the objects in an image,
answers are scored as captions: the words that count are all objects of the file, in lower case, as whole words,
singular or with a plural's s or es, the longest first, so that a `wine glass` is not a `glass`. A mention of an object
that the image does not show is a hallucination.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from qkedit.errors import UsageError
from qkedit.evaluation.benchmarks.chair import scoring as chair
from qkedit.evaluation.benchmarks.chair.metrics import METRICS as CAPTION_METRICS
from qkedit.evaluation.benchmarks.chair.words import Reading
from qkedit.evaluation.benchmarks.plain_functions import Answered, BenchmarkOfFunctions, Functions, Scorer
from qkedit.evaluation.benchmarks.yes_no import METRICS, score_yes_no
from qkedit.evaluation.files.json_rows import Row, read_rows
from qkedit.evaluation.files.records import CaptionItem, Item, Question, Score, YesNoItem
from qkedit.evaluation.metric import Metric

VARIANT = "words"
_WORD = re.compile(r"\w+")


def load_questions(data: Path, split: str | None = None) -> tuple[Question, ...]:
    """Return the questions of a file, or of `questions.jsonl` in a directory.

    Args:
        data: the file or the directory.
        split: any name for the score.

    Raises:
        QkeditError: a row is not a question, two have the same id, or some truths are yes or no and some are lists.
    """
    questions: dict[str, Question] = {}
    for row in read_rows(data / "questions.jsonl" if data.is_dir() else data):
        identifier = row.identifier("id")
        if identifier in questions:
            raise row.wrong(f"the id {identifier!r} occurs twice")
        image, truth = row.text("image"), _truth(row)
        first = next(iter(questions.values()), None)
        if first is not None and isinstance(first.truth, str) != isinstance(truth, str):
            raise row.wrong(
                "some truths are yes or no and some are lists of objects", "write them to two files and score each"
            )
        questions[identifier] = Question(identifier, image, row.text("question"), truth, group=image)
    return tuple(questions.values())


def _truth(row: Row) -> str | tuple[str, ...]:
    truth = row.fields.get("truth")
    if isinstance(truth, str) and truth.strip().lower() in ("yes", "no"):
        return truth.strip().lower()
    if isinstance(truth, list) and all(isinstance(entry, str) and _words(entry) for entry in truth):
        return tuple(dict.fromkeys(" ".join(_words(entry)) for entry in truth))
    raise row.wrong("truth is neither 'yes' nor 'no' nor a list of objects")


@Scorer
def score(given: Answered) -> Score:
    """Return the score of answers to a user's own questions.

    Args:
        given: answers to questions that all have a truth of yes or no, or all a list of objects. The split is a name
            for the score. The rule is one of POPE's parsers for yes and no (by default `official`), None for captions.

    Raises:
        QkeditError: answers and questions do not match, or there is no such parser.
    """
    if all(isinstance(question.truth, str) for question in given.questions):
        return score_yes_no("custom", given, given.joined(), "official")
    if given.rule is not None:
        raise UsageError(
            "captions are not parsed as yes or no", where="--parser", remedy="leave it out for lists of objects"
        )
    mentions = mention_finder(entry for question in given.questions for entry in question.truth)
    captions = chair.score(
        given.questions,
        given.answers,
        # CHAIR accepts captions of any of its images, unless a split is named, which must be complete.
        split=given.split or "custom",
        rule=VARIANT,
        allow_missing=given.allow_missing,
        read=lambda caption: Reading(mentions(caption)),
    )
    return replace(captions, benchmark="custom", split=given.split, printed={})


def mention_finder(objects: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a function that finds the mentions of these objects in a caption, in order, repeats included.

    Example:
        >>> mention_finder(["cup", "wine glass", "glass"])("Two cups and a Wine Glass.")
        ('cup', 'wine glass')
    """
    names = {tuple(_words(entry)): entry for entry in objects}
    forms: dict[tuple[str, ...], str] = {}
    for ending in ("", "s", "es"):  # an object's own name takes precedence over another's plural
        for words, name in names.items():
            forms.setdefault((*words[:-1], words[-1] + ending), name)
    beginning: dict[str, list[tuple[str, ...]]] = {}
    for form in sorted(forms, key=len, reverse=True):
        beginning.setdefault(form[0], []).append(form)

    def mentions(caption: str) -> tuple[str, ...]:
        words, found, end = tuple(_words(caption)), [], 0
        for place, word in enumerate(words):
            if word not in beginning or place < end:
                continue
            form = next((form for form in beginning[word] if words[place : place + len(form)] == form), None)
            if form is not None:
                found.append(forms[form])
                end = place + len(form)
        return tuple(found)

    return mentions


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class CustomQuestions(BenchmarkOfFunctions):
    """A user's own questions, with yes or no or a list of objects as their truth."""

    name = "custom"
    title = "custom questions"
    rules = ("official", "vcd", "opera", "repope")
    max_new_tokens = 512
    metrics = (*METRICS, *(metric for metric in CAPTION_METRICS if metric.name not in {one.name for one in METRICS}))
    item_kinds = (YesNoItem, CaptionItem)
    functions = Functions(load_questions, score)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics of captions or those of yes and no."""
        return CAPTION_METRICS if isinstance(items[0], CaptionItem) else METRICS
