"""CHAIR: the objects that captions mention but their images do not show (Rohrbach et al., arXiv 1809.02156).

    CHAIR_s = captions with a hallucinated object / captions
    CHAIR_i = hallucinated mentions / mentions, repeats included
    recall  = distinct true objects mentioned / true objects

A reader, such as those in `words.py`, finds the objects that a caption mentions; scoring needs no language library. A
caption's id is that of its COCO image. Without a split, the answers choose the images, since the truth is known for
all of COCO's images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from qkedit.errors import UsageError
from qkedit.evaluation.benchmarks.captions.coco import load_answers as load_answers
from qkedit.evaluation.benchmarks.captions.counts import caption_counts
from qkedit.evaluation.benchmarks.chair.ground_truth import PLACES, load_truth, save_truth
from qkedit.evaluation.benchmarks.chair.words import Reader, Synonyms, read_synonyms, reader
from qkedit.evaluation.benchmarks.plain_functions import Answered, Scorer
from qkedit.evaluation.benchmarks.yes_no import quotient, undefined
from qkedit.evaluation.files.data_files import required
from qkedit.evaluation.files.records import Answer, CaptionItem, Question, Score
from qkedit.prompts import CAPTION_PROMPT

_PUBLISHED = "github.com/LisaAnne/Hallucination (data/synonyms.txt)"


def load_questions(
    data: Path, split: str | None = None, *, variant: str = "official", cache_ground_truth: Path | None = None
) -> tuple[Question, ...]:
    """Return one question for each image whose objects are known.

    Args:
        data: a directory with CHAIR's `synonyms.txt` and the truth: `*_gt_objects.json`, or COCO's annotation files.
        split: the name of one file of truth without `_gt_objects.json`, or `val2014` of the annotation files.
        variant: the reader of the reference captions, if the truth is built from annotation files.
        cache_ground_truth: also write the truth to this file, which is much faster to read than annotation files.

    Raises:
        UsageError: there is no such split or variant.
        QkeditError: a file is missing or broken.
    """
    directory = data.parent if data.is_file() else data
    synonyms = load_synonyms(directory)
    truth = load_truth(data, split, synonyms, _lazily(lambda: reader(synonyms, variant, directory)))
    if cache_ground_truth is not None:
        save_truth(truth, cache_ground_truth)
    fields = {"synonyms": synonyms, "data": directory}
    return tuple(
        Question(image, shown.image, CAPTION_PROMPT, shown.objects, group=image, fields=fields)
        for image, shown in sorted(truth.items(), key=lambda entry: (len(entry[0]), entry[0]))
    )


def load_synonyms(data: Path) -> Synonyms:
    """Return CHAIR's table of synonyms in a data directory. Raises QkeditError if there is none."""
    return read_synonyms(required(data, ("synonyms.txt",), PLACES, _PUBLISHED))


@Scorer
def score(given: Answered, *, read: Reader | None = None) -> Score:
    """Return the score of captions.

    Args:
        given: captions as answers to questions with the objects of their images, by the images' ids. Every question
            of a split has to be answered; without a split, the answers choose the images. The rule is `official` (the
            default) or `wordnet`, or the name of the given `read`.
        read: the reader of captions; by default that of the variant.

    Raises:
        UsageError: the variant is unknown.
        QkeditError: answers and questions do not match, or a language library or its data are missing.
    """
    questions, variant = given.questions, given.rule or "official"
    read = read or _own_reader(questions, variant)
    joined = given.joined_answered()
    readings = [read(answer.text) for _, answer in joined.pairs]
    items = tuple(
        _item(question, answer, reading.objects)
        for (question, answer), reading in zip(joined.pairs, readings, strict=True)
    )
    counts = caption_counts(items)
    metrics = {
        "chair_s": quotient(counts["hallucinated_captions"], counts["captions"]),
        "chair_i": quotient(counts["hallucinated_mentions"], counts["mentions"]),
        "recall": quotient(counts["covered_objects"], counts["true_objects"]),
        "mean_words": quotient(counts["words"], counts["captions"]),
    }
    printed = {
        name: f"{value * 100:.1f}"
        for name, key in (("CHAIRs", "chair_s"), ("CHAIRi", "chair_i"), ("Recall", "recall"))
        if (value := metrics[key]) is not None
    }
    if variant == "wordnet":
        tokens = sum(reading.tokens or 0 for reading in readings)
        printed["Len"] = f"{0.01 * tokens / len(items) * 100:.1f}"
    return Score(
        benchmark="chair",
        split=given.split,
        rule=variant,
        rule_kind="variant",
        n=len(items),
        counts=counts | joined.counts,
        metrics=metrics,
        printed=printed,
        items=items,
        warnings=(*joined.warnings, *undefined(metrics)),
    )


def _own_reader(questions: Sequence[Question], variant: str) -> Reader:
    """Return the reader that belongs to the questions' data."""
    fields = questions[0].fields if questions else {}
    if "synonyms" not in fields:
        raise UsageError("the questions have no table of synonyms", where="chair", remedy="give `read`")
    return reader(fields["synonyms"], variant, fields["data"])


def _lazily(make: Callable[[], Reader]) -> Reader:
    """Return a reader that is created at its first caption: reading finished truth needs no language library."""
    made = cache(make)
    return lambda caption: made()(caption)


def _item(question: Question, answer: Answer, objects: tuple[str, ...]) -> CaptionItem:
    mentioned, shown = frozenset(objects), frozenset(question.truth)
    return CaptionItem(
        id=question.id,
        found=objects,
        hallucinated=tuple(name for name in objects if name not in shown),
        covered=tuple(name for name in question.truth if name in mentioned),
        truth=tuple(question.truth),
        words=len(answer.text.split()),
        group=question.group,
    )
