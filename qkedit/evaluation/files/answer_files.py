"""Read answers and find the question for each.

An answer file has the benchmark's own format, or JSON lines `{"id": …, "answer": …}` for any benchmark. A row may also
give its `split`, the question (`question` or `prompt`) and the `image`. Ids are small numbers in most benchmarks, so
answers to another split would match as well; these keys reveal them. Nothing is scored unless everything matches.
`finish_reason` says why an answer ended; empty answers and those cut off are counted.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from qkedit.errors import QkeditError
from qkedit.evaluation.files.json_rows import Row, read_rows
from qkedit.evaluation.files.records import Answer, Question

COMMON_ID = "id"
COMMON_TEXT = "answer"


@dataclass(frozen=True)
class Joined:
    """Questions with their answers, in the questions' order.

    Attributes:
        missing: the number of questions without an answer.
    """

    pairs: tuple[tuple[Question, Answer], ...]
    missing: int

    @property
    def counts(self) -> dict[str, int]:
        """The counts for a score: empty unless answers are missing, empty or cut off."""
        counts = {"missing": self.missing, "empty": self._empty, "cut": self._cut}
        return {name: count for name, count in counts.items() if count}

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings for a score."""
        found = len(self.pairs)
        sentences = {
            f"{self.missing} of {found + self.missing} questions have no answer and are left out": self.missing,
            f"{self._empty} of {found} answers are empty, and the rule scores them as it scores any text (as yes, as "
            "wrong, or as a caption without hallucinations)": self._empty,
            f"{self._cut} of {found} answers were cut off and are scored as far as they go (where the reason is the "
            "length, a longer --max-new-tokens would show the rest)": self._cut,
        }
        return tuple(sentence for sentence, count in sentences.items() if count)

    @property
    def _empty(self) -> int:
        return sum(answer.is_empty for _, answer in self.pairs)

    @property
    def _cut(self) -> int:
        return sum(answer.is_cut for _, answer in self.pairs)


def read_answers(
    file: Path, *, ids: Sequence[str] = (), texts: Sequence[str] = (), rows: Sequence[Row] | None = None
) -> tuple[Answer, ...]:
    """Return the answers of a file of JSON lines or of one JSON array.

    Args:
        file: the file of answers.
        ids: the keys of the id in the benchmark's own format; `id` is always accepted.
        texts: the keys of the answer in that format; `answer` is always accepted, and comes first.
        rows: the file's rows, if they were already read.

    Raises:
        QkeditError: the file cannot be read, or a row has no id or no text; the error names the file and the line.
    """
    id_keys = tuple(dict.fromkeys((*ids, COMMON_ID)))
    text_keys = tuple(dict.fromkeys((COMMON_TEXT, *texts)))
    return tuple(answer_in(row, row.identifier(*id_keys), text_keys) for row in rows or read_rows(file))


def answer_in(row: Row, identifier: str, texts: Sequence[str]) -> Answer:
    """Return the answer in one row, under the first of these keys that it has."""
    key = row.first_key(*texts)
    if "label" in row.fields and key != COMMON_TEXT:
        raise row.wrong("is a question with its label, not an answer", "name the file of answers")
    return Answer(identifier, row.text(*texts), row.line, row.file, row.fields)


def join(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    *,
    allow_missing: bool = False,
    known: Container[str] = (),
) -> Joined:
    """Find the question of each answer.

    Args:
        questions: the questions to score.
        answers: the answers, in any order.
        allow_missing: leave out questions without an answer instead of refusing.
        known: ids of other questions that are not scored; answers to them are left out.

    Raises:
        QkeditError: an id is unknown or answered twice, an answer is missing, or an answer belongs to another
            question; the error names the file and the line.
    """
    by_id = {question.id: question for question in questions}
    found: dict[str, Answer] = {}
    for answer in answers:
        question = by_id.get(answer.id)
        if question is None:
            if answer.id in known:
                continue
            raise QkeditError(
                f"no question has the id {answer.id!r}",
                where=answer.where,
                remedy="name the answers to this benchmark and split",
            )
        if answer.id in found:
            earlier = found[answer.id].line
            first = f", first on line {earlier}" if earlier is not None else ""
            raise QkeditError(
                f"the question {answer.id!r} is answered twice{first}",
                where=answer.where,
                remedy="leave one answer to each question",
            )
        _check_question(question, answer)
        found[answer.id] = answer
    unanswered = [question.id for question in questions if question.id not in found]
    if not found or (unanswered and not allow_missing):
        file = next((answer.file for answer in answers if answer.file), "answers")
        raise QkeditError(
            f"{len(unanswered)} of {len(questions)} questions have no answer, the first is {unanswered[0]!r}"
            if questions
            else "there are no questions",
            where=file,
            remedy="answer them all" + (", or score the others with --allow-missing" if found else ""),
        )
    pairs = tuple((question, found[question.id]) for question in questions if question.id in found)
    return Joined(pairs, len(unanswered))


def _check_question(question: Question, answer: Answer) -> None:
    """Refuse an answer whose row gives another question or image."""
    image = answer.fields.get("image")
    # Directories and path separators differ between machines.
    if isinstance(image, str) and PureWindowsPath(image).name != PureWindowsPath(question.image).name:
        raise QkeditError(
            f"the answer {answer.id!r} is about the image {_short(image)!r}, the question about {question.image!r}",
            where=answer.where,
            remedy="name the answers to this benchmark and split",
        )
    asked = answer.fields.get("question", answer.fields.get("prompt"))
    # Published formats differ in case and spaces, and a prompt may continue after the question.
    if isinstance(asked, str) and _plain(question.prompt) not in _plain(asked):
        raise QkeditError(
            f"the answer {answer.id!r} is to {_short(asked)!r}, the question is {_short(question.prompt)!r}",
            where=answer.where,
            remedy="name the answers to this benchmark and split, or remove the question's text if it was reworded",
        )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
