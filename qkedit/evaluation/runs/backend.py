"""The requests of a run, and its backend: a model in this process or an endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qkedit.evaluation.files.records import STOP, Question
from qkedit.version import __version__


@dataclass(frozen=True)
class EvalRequest:
    """One question as a model gets it.

    Attributes:
        task: the task it belongs to, such as `pope.random`.
        question: the benchmark's question.
        prompt: the prompt, either the unchanged question or the user's wording.
        image: the image file; None for a question without an image.
        max_new_tokens: the maximum length of the answer.
    """

    task: str
    question: Question
    prompt: str
    image: Path | None
    max_new_tokens: int

    @property
    def id(self) -> str:
        """The question's id, unique within its task."""
        return self.question.id


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        text: the unchanged text; empty if the model returned none.
        finish_reason: why the answer ended, in the words of OpenAI's protocol; `stop` if the model ended it.
        seconds: its share of the wall time of its batch; None where that is not measured.
    """

    text: str
    finish_reason: str = STOP
    seconds: float | None = None


class Session(Protocol):
    """A backend that is ready to answer."""

    @property
    def observed(self) -> Mapping[str, Any]:
        """Facts known only when it is ready, such as the attention implementation; part of a run's identity."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings about the answers so far."""
        ...

    def answers(self, requests: Sequence[EvalRequest]) -> Iterator[tuple[EvalRequest, Reply]]:
        """Yield every answer as soon as it is ready, in any order, unchanged.

        Raises:
            QkeditError: an answer fails; the finished ones are yielded first.
        """
        ...


class Backend(Protocol):
    """The interface of a model that answers requests."""

    @property
    def name(self) -> str:
        """The user's name for the model."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that do not change the answers, such as the batch size."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return everything about the backend that affects answers. Must not load a model."""
        ...

    def session(self) -> AbstractContextManager[Session]:
        """Load or connect the backend, and yield a session. Raises QkeditError if that fails."""
        ...


@runtime_checkable
class DependsOnImages(Protocol):
    """A backend whose answers about images depend on more files than the images."""

    def identity_for(self, images: Iterable[Path]) -> dict[str, Any]:
        """Return what else affects answers about these images. Raises UsageError if it is missing."""
        ...


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of qkedit and of these libraries."""
    from importlib.metadata import version

    return {"qkedit": __version__} | {name: version(name) for name in libraries}
