"""Score custom questions with choices: JSON lines `id, image, question, choices, truth`.

An answer is right if it names the true choice and no other one, by the rules for words of custom questions: whole
words in any case, singular or plural. An answer that names none or several is wrong. The chance level (the accuracy of
a guess among the choices) is reported next to accuracy, and so is the share of answers that name exactly one choice: a
model that never names one is not at the chance level, but below it.
"""

from __future__ import annotations

import re
from pathlib import Path

from qkedit.evaluation.benchmarks.custom import mention_finder
from qkedit.evaluation.benchmarks.plain_functions import Answered, BenchmarkOfFunctions, Functions, Scorer
from qkedit.evaluation.files.json_rows import Row, read_rows
from qkedit.evaluation.files.records import MeasuredItem, Question, Score
from qkedit.evaluation.metric import Better, Metric, Unit, measured

RULE = "words"
METRICS = (
    Metric("accuracy", Better.HIGHER, Unit.SHARE, measured("accuracy")),
    Metric("chance", Better.NEITHER, Unit.SHARE, measured("chance")),
    Metric("named", Better.NEITHER, Unit.SHARE, measured("named")),
)


def load_questions(data: Path, split: str | None = None) -> tuple[Question, ...]:
    """Return the questions of a file, or of `choices.jsonl` in a directory.

    Args:
        data: the file or the directory.
        split: any name for the score.

    Raises:
        QkeditError: a row is not a question with choices, or two have one id.
    """
    questions: dict[str, Question] = {}
    for row in read_rows(data / "choices.jsonl" if data.is_dir() else data):
        identifier, image, choices = row.identifier("id"), row.text("image"), _choices(row)
        if identifier in questions:
            raise row.wrong(f"the id {identifier!r} occurs twice")
        truth = row.text("truth")
        if truth not in choices:
            raise row.wrong("truth is not one of the choices")
        questions[identifier] = Question(
            identifier, image, row.text("question"), truth, group=image, fields={"choices": choices}
        )
    return tuple(questions.values())


def _choices(row: Row) -> tuple[str, ...]:
    choices = row.fields.get("choices")
    if not isinstance(choices, list) or not all(isinstance(entry, str) for entry in choices):
        raise row.wrong("choices is not a list of texts")
    # Choices that the rules for words do not distinguish could not be told apart in an answer.
    has_words = all(re.search(r"\w", entry) for entry in choices)
    if len(choices) < 2 or not has_words or any(mention_finder(choices)(entry) != (entry,) for entry in choices):
        raise row.wrong("choices are not two or more different words or phrases")
    return tuple(choices)


@Scorer
def score(given: Answered) -> Score:
    """Return the score of answers to questions with choices.

    Raises:
        QkeditError: answers and questions do not belong together.
    """
    joined = given.joined()
    items = []
    for question, answer in joined.pairs:
        choices = question.fields["choices"]
        named = set(mention_finder(choices)(answer.text))
        sums = {
            "accuracy": (float(named == {question.truth}), 1.0),
            "chance": (1 / len(choices), 1.0),
            "named": (float(len(named) == 1), 1.0),
        }
        items.append(MeasuredItem(question.id, sums, str(question.truth), question.group))
    metrics = {metric.name: metric.value_of(items) for metric in METRICS} if items else {}
    right, named_one = (int(sum(item.sums[name][0] for item in items)) for name in ("accuracy", "named"))
    return Score(
        benchmark=Choice.name,
        split=given.split,
        rule=given.rule or RULE,
        n=len(items),
        counts={"right": right, "named": named_one} | joined.counts,
        metrics=metrics,
        printed={},
        items=tuple(items),
        warnings=joined.warnings,
    )


class Choice(BenchmarkOfFunctions):
    """A user's own questions, each of which names its possible answers."""

    name = "choice"
    title = "questions with choices"
    rules = (RULE,)
    max_new_tokens = 32
    metrics = METRICS
    item_kinds = (MeasuredItem,)
    functions = Functions(load_questions, score)
