"""A user's own questions: JSON lines `id, image, question, truth`.

Where every truth is yes or no, answers are scored as POPE's are. Where every truth is the list of the objects that an
image shows, they are scored as captions: the words that matter are all objects of the file, in lower case, as whole
words, singular or with a plural's s or es, the longest first, so that a `wine glass` is no `glass`. A mention of one
that the image does not show is a hallucination.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.answer_files import Joined, join
from qkedit.evaluation.json_rows import Row, read_rows
from qkedit.evaluation.records import Answer, CaptionItem, Question, Score
from qkedit.evaluation.yes_no import judge, parser_named, quotient, score_of, undefined

VARIANT = "words"


def load_questions(data: Path, split: str | None = None) -> tuple[Question, ...]:
    """Return the questions of a file, or of `questions.jsonl` in a directory.

    Args:
        data: the file or the directory.
        split: a name for the score, whatever it is.

    Raises:
        QkeditError: a row is no question, two have one id, or some truths are yes or no and some are lists.
    """
    questions: dict[str, Question] = {}
    for row in read_rows(data / "questions.jsonl" if data.is_dir() else data):
        identifier = row.identifier("id")
        if identifier in questions:
            raise row.wrong(f"the id {identifier!r} stands twice")
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


def score(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    split: str | None = None,
    parser: str | None = None,
    allow_missing: bool = False,
) -> Score:
    """Return the score of answers to a user's own questions.

    Args:
        questions: all with a truth of yes or no, or all with a list of objects.
        answers: one to each question, in any order.
        split: a name for the score.
        parser: of yes and no, one of POPE's; official by default. None for captions.
        allow_missing: leave out questions without an answer instead of refusing.

    Raises:
        QkeditError: answers and questions do not fit, or there is no such parser.
    """
    joined = join(questions, answers, allow_missing=allow_missing)
    if all(isinstance(question.truth, str) for question in questions):
        name, parse = parser_named(parser, "official")
        return score_of("custom", split, name, joined, judge(joined, parse))
    if parser is not None:
        raise UsageError(
            "captions are not parsed as yes or no", where="--parser", remedy="leave it out for lists of objects"
        )
    return _caption_score(split, joined, mention_finder(entry for question in questions for entry in question.truth))


def mention_finder(objects: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a function that finds the mentions of these objects in a caption, in order, repeats included.

    Example:
        >>> mention_finder(["cup", "wine glass", "glass"])("Two cups and a Wine Glass.")
        ('cup', 'wine glass')
    """
    known = {tuple(_words(entry)): entry for entry in objects}
    longest = max(map(len, known), default=0)

    def mentions(caption: str) -> tuple[str, ...]:
        words, found, place = _words(caption), [], 0
        while place < len(words):
            for length in range(min(longest, len(words) - place), 0, -1):
                *before, last = words[place : place + length]
                name = next((known[form] for end in _singulars(last) if (form := (*before, end)) in known), None)
                if name is not None:
                    found.append(name)
                    place += length
                    break
            else:
                place += 1
        return tuple(found)

    return mentions


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _singulars(word: str) -> tuple[str, ...]:
    """Return a word as it stands and without the endings of a plural."""
    return (word, *(word.removesuffix(ending) for ending in ("s", "es") if word.endswith(ending)))


def _caption_score(split: str | None, joined: Joined, mentions: Callable[[str], tuple[str, ...]]) -> Score:
    items = []
    for question, answer in joined.pairs:
        truth, found = tuple(question.truth), mentions(answer.text)
        items.append(
            CaptionItem(
                id=question.id,
                found=found,
                hallucinated=tuple(name for name in found if name not in truth),
                covered=tuple(name for name in truth if name in found),
                truth=truth,
                words=len(answer.text.split()),
                group=question.group,
            )
        )
    counts = {
        "captions": len(items),
        "hallucinated_captions": sum(bool(item.hallucinated) for item in items),
        "mentions": sum(len(item.found) for item in items),
        "hallucinated_mentions": sum(len(item.hallucinated) for item in items),
        "true_objects": sum(len(item.truth) for item in items),
        "covered_objects": sum(len(item.covered) for item in items),
        "words": sum(item.words for item in items),
    }
    metrics = {
        "chair_s": quotient(counts["hallucinated_captions"], counts["captions"]),
        "chair_i": quotient(counts["hallucinated_mentions"], counts["mentions"]),
        "recall": quotient(counts["covered_objects"], counts["true_objects"]),
        "mean_words": quotient(counts["words"], counts["captions"]),
    }
    return Score(
        benchmark="custom",
        split=split,
        rule=VARIANT,
        rule_kind="variant",
        n=len(items),
        counts={**counts, **joined.counts},
        metrics=metrics,
        printed={},
        items=tuple(items),
        warnings=(*joined.warnings, *undefined(metrics)),
    )
