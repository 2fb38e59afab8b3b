"""AMBER (arXiv 2311.07397): hallucinations in descriptions, and questions about objects, attributes and relations.

Only exactly `Yes` or `No` answers a question, and anything else is wrong. `no` is the positive class:

    precision = right No / said No        recall = right No / No is true

Figures are in percent and rounded to one decimal, with 0.001 more in every denominator; F1 comes from the rounded
precision and recall. The splits are the generative task, the dimensions of questions, and two totals of dimensions.
The parser `normalised` is our own: AMBER's prompts do not ask for one word, and models say `Yes, it is.`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.amber.descriptions import Words, counts_of, figures, item, noun_reader, percent
from qkedit.evaluation.benchmarks.amber.similarity import EXACT, Similarity, build_similarity, read_similarity
from qkedit.evaluation.benchmarks.plain_functions import Answered, Scorer
from qkedit.evaluation.benchmarks.yes_no import undefined
from qkedit.evaluation.files.answer_files import Joined, read_answers
from qkedit.evaluation.files.data_files import find, required
from qkedit.evaluation.files.json_rows import Row, read_object, read_rows, read_text
from qkedit.evaluation.files.records import AmberAnswerItem, Answer, Question, Score

GENERATIVE = "generative"
ATTRIBUTES = ("state", "number", "action")
DIMENSIONS = ("existence", *ATTRIBUTES, "relation")
AGGREGATES = {"discriminative": DIMENSIONS, "attribute": ATTRIBUTES}
SPLITS = (GENERATIVE, *AGGREGATES, *DIMENSIONS)
PARSERS = ("official", "normalised")
# The figures of descriptions without a table of similar words.
WITHOUT_SIMILARITY = "without-similarity"
_DIMENSION_OF_TYPE = {
    "generative": GENERATIVE,
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
_PLACES = ("amber", "data", "query", "data/query", "amber/query", "amber/data", "amber/data/query")
_PUBLISHED = "github.com/junyangwang0410/AMBER (data/)"
_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def load_questions(data: Path, split: str | None = None, *, similarity: Path | None = None) -> tuple[Question, ...]:
    """Return the questions of a split, or all 15220.

    Args:
        data: a directory with AMBER's annotations.json, query_all.json, relation.json and safe_words.txt, or one of
            them.
        split: one of SPLITS or None.
        similarity: the table of similar words for the generative task; by default `similarity.json` in the directory,
            if it exists.

    Raises:
        UsageError: there is no such split.
        QkeditError: a file is missing or broken.
    """
    dimensions = SPLITS if split is None else dimensions_of(split)
    data = data.parent if data.is_file() else data
    asked = {row.identifier("id"): row for row in read_rows(_file(data, "query_all.json"))}
    words = _load_words(data, similarity)
    questions: dict[str, Question] = {}
    for row in read_rows(_file(data, "annotations.json")):
        identifier = row.identifier("id")
        if identifier in questions:
            raise row.wrong(f"the id {identifier!r} occurs twice")
        if identifier not in asked:
            raise row.wrong(f"the id {identifier!r} is not in query_all.json")
        questions[identifier] = _question(identifier, row, asked[identifier], words)
    return tuple(question for question in questions.values() if question.fields["dimension"] in dimensions)


def _file(data: Path, name: str) -> Path:
    return required(data, (name,), _PLACES, _PUBLISHED)


def _load_words(data: Path, similarity: Path | None) -> dict[str, Any]:
    """Return the data for judging descriptions: AMBER's words, similar words, and the directory of nltk's data."""
    file = _file(data, "relation.json")
    associations = read_object(file)
    for associated in associations.values():
        if not isinstance(associated, list) or not all(isinstance(word, str) for word in associated):
            raise QkeditError(
                "an object's associations are not a list of words",
                where=str(file),
                remedy=f"take it from {_PUBLISHED}",
            )
    safe = read_text(_file(data, "safe_words.txt")).split("\n")
    words = Words({name: tuple(associated) for name, associated in associations.items()}, frozenset(safe))
    table = similarity or find(data, ("similarity.json",), _PLACES)
    return {
        "words": words,
        "similarity": read_similarity(table, words.vocabulary) if table is not None else None,
        "data": data,
    }


def _question(identifier: str, row: Row, query: Row, words: Mapping[str, Any]) -> Question:
    """Return the question of one row of the annotations and the query of the same id."""
    kind = row.text("type")
    if kind not in _DIMENSION_OF_TYPE:
        raise row.wrong(f"the type {kind!r} is not one of AMBER's")
    fields: dict[str, Any] = {"dimension": _DIMENSION_OF_TYPE[kind]}
    truth: str | tuple[str, ...]
    if fields["dimension"] == GENERATIVE:
        truth = _objects(row, "truth", words["words"])
        fields |= {**words, "likely": _objects(row, "hallu", words["words"])}
    else:
        truth = row.text("truth")
        if truth not in ("yes", "no"):
            raise row.wrong(f"the truth {truth!r} is neither 'yes' nor 'no'")
    image = query.text("image")
    return Question(identifier, image, query.text("query"), truth, group=image, fields=fields)


def _objects(row: Row, key: str, words: Words) -> tuple[str, ...]:
    names = row.fields.get(key)
    if not isinstance(names, list):
        raise row.wrong(f"{key} is not a list of objects")
    for name in names:
        if not isinstance(name, str) or name not in words.associations:
            raise row.wrong(f"the object {name!r} is not in relation.json")
    return tuple(names)


def dimensions_of(split: str) -> tuple[str, ...]:
    """Return the dimensions of a split. Raises UsageError if there is no such split."""
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", where="--split", remedy=f"choose among {', '.join(SPLITS)}")
    return AGGREGATES.get(split, (split,))


def load_answers(file: Path) -> tuple[Answer, ...]:
    """Return answers in AMBER's own format, rows of `id` and `response`, or in the common one.

    Raises:
        QkeditError: the file cannot be read or a row is broken; file and line are named.
    """
    return read_answers(file, texts=("response",))


def answered_splits(questions: Sequence[Question], answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the dimensions with any answers, and the totals whose dimensions all have answers."""
    dimension_of = {question.id: question.fields["dimension"] for question in questions}
    answered = {dimension_of.get(answer.id) for answer in answers}
    return tuple(split for split in SPLITS if answered.issuperset(dimensions_of(split)))


@Scorer
def score(given: Answered, *, similarity: Similarity | None = None) -> Score:
    """Return the score of one split.

    Args:
        given: answers to questions of the split (those of other dimensions are left out). The split is one of SPLITS,
            by default the dimension of the questions. The rule is official, or normalised, which differs only for
            questions.
        similarity: tells which words are similar; by default the table of the questions' data, or spaCy's model if
            it is installed. A score without either of them has another name and a warning.

    Raises:
        QkeditError: answers and questions do not match, there is no such split or parser, or a description needs a
            missing language library.
    """
    parser = given.rule or PARSERS[0]
    if parser not in PARSERS:
        raise UsageError(
            f"there is no parser {parser!r}", where="--parser", remedy=f"choose among {', '.join(PARSERS)}"
        )
    split = given.split
    if split is None:
        dimensions = dict.fromkeys(question.fields["dimension"] for question in given.questions)
        if len(dimensions) != 1:
            raise UsageError("no split is given", where="--split", remedy=f"choose among {', '.join(SPLITS)}")
        (split,) = dimensions
    asked = dimensions_of(split)
    joined = given.joined_part(lambda question: question.fields["dimension"] in asked)
    return _generative(joined, similarity) if split == GENERATIVE else _discriminative(split, joined, parser)


def parse(text: str) -> str | None:
    """Parse by AMBER's own rule: only the exact word is an answer."""
    return {"Yes": "yes", "No": "no"}.get(text)


def parse_normalised(text: str) -> str | None:
    """Parse by our rule: the first word, ignoring case and everything before and after it."""
    found = _FIRST_WORD.match(text)
    return found[1].lower() if found else None


def _discriminative(split: str, joined: Joined, parser: str) -> Score:
    read = parse if parser == "official" else parse_normalised
    items = []
    for question, answer in joined.pairs:
        parsed, truth = read(answer.text), str(question.truth)
        dimension = question.fields["dimension"]
        items.append(AmberAnswerItem(question.id, parsed, truth, parsed == truth, question.group, dimension=dimension))
    counts = {
        "tp": sum(item.parsed == item.truth == "no" for item in items),
        "fp": sum(item.parsed == "no" and item.truth == "yes" for item in items),
        "tn": sum(item.parsed == item.truth == "yes" for item in items),
        "fn": sum(item.parsed == "yes" and item.truth == "no" for item in items),
        "other": sum(item.parsed is None for item in items),
        "other_where_no": sum(item.parsed is None and item.truth == "no" for item in items),
    }
    said, true = counts["tp"] + counts["fp"], counts["tp"] + counts["fn"] + counts["other_where_no"]
    # The official script has three sums for attributes, and adds them.
    started = 3 if split == "attribute" else 1
    accuracy = percent(counts["tp"] + counts["tn"], len(items), started)
    precision, recall = percent(counts["tp"], said, started), percent(counts["tp"], true, started)
    f1 = _f1(precision, recall, 0.001 if split == "existence" else 0.0001)
    metrics = {
        "accuracy": accuracy,
        "precision": precision if said else None,
        "recall": recall if true else None,
        "f1": f1 if said and true else None,
    }
    other = counts["other"]
    warnings = [f"{other} of {len(items)} answers are neither yes nor no and count as wrong"] if other else []
    if parser != "official":
        warnings.append("answers were normalised: not comparable with published figures")
    return Score(
        benchmark="amber",
        split=split,
        rule=parser,
        n=len(items),
        counts={**counts, **joined.counts},
        metrics=metrics,
        printed={"Accuracy": str(accuracy), "Precision": str(precision), "Recall": str(recall), "F1": str(f1)},
        items=tuple(items),
        warnings=(*joined.warnings, *warnings, *undefined(metrics)),
    )


def _f1(precision: float, recall: float, more: float) -> float:
    """Return F1 of rounded percentages, in the official order of operations."""
    return round(2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + more) * 100, 1)


def _generative(joined: Joined, similarity: Similarity | None) -> Score:
    fields: Mapping[str, Any] = joined.pairs[0][0].fields
    words: Words = fields["words"]
    similar = similarity or fields["similarity"] or build_similarity(words.vocabulary) or EXACT
    nouns = noun_reader(words.vocabulary, fields["data"])
    items = [item(question, answer, nouns(answer.text), words, similar) for question, answer in joined.pairs]
    counts = counts_of(items)
    printed = figures(counts)
    empty = {"CHAIR": not counts["mentions"], "Cover": not counts["true_objects"], "Cog": not counts["likely_objects"]}
    metrics = {name.lower(): None if empty.get(name) else value for name, value in printed.items()}
    metrics["mean_words"] = counts["words"] / counts["captions"]
    warnings = list(joined.warnings)
    if similar is EXACT:
        warnings.append(
            "there is no table of similar words: nouns that it would accept count as hallucinated, and Cover"
            " and Cog are lower; not comparable with published figures"
        )
    return Score(
        benchmark="amber",
        split=GENERATIVE,
        rule=WITHOUT_SIMILARITY if similar is EXACT else PARSERS[0],
        rule_kind="variant",
        n=len(items),
        counts={**counts, **joined.counts},
        metrics=metrics,
        printed={name: str(value) for name, value in printed.items()},
        items=tuple(items),
        warnings=(*warnings, *undefined(metrics)),
    )
