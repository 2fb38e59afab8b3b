"""A target of the fuzzer: a generator of inputs, and a check of qkedit's reaction to one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, ClassVar


class Outcome(StrEnum):
    """The outcome of an input; anything else is a `Finding`."""

    ACCEPTED = "accepted"
    REFUSED = "refused"


class Finding(AssertionError):
    """qkedit broke a promise; `kind` is one word for it."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind = kind
        self.what = what
        super().__init__(f"{kind}: {what}")


class Target(ABC):
    """One format of files or one field of a request.

    Attributes:
        name: the name for `--only`.
        subject: a description of the inputs, for the document.
        seconds: the time limit of one input, far more than it needs.
        megabytes: the maximum growth of the process's peak memory by one input.
    """

    name: ClassVar[str]
    subject: ClassVar[str]
    seconds: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 300

    def __init__(self, work: Path) -> None:
        """Store an empty working directory, which is removed afterwards."""
        self.work = work

    def prepare(self) -> None:  # noqa: B027 - most need it, some do not
        """Build valid inputs, which are changed later."""

    @abstractmethod
    def generate(self, random: Random) -> Any:
        """Return an input; the same one for a generator in the same state."""

    @abstractmethod
    def check(self, given: Any) -> Outcome:
        """Let qkedit read an input. Raises Finding, or an exception that qkedit must not raise."""

    def close(self) -> None:  # noqa: B027 - likewise
        """Undo `prepare`."""


def as_bytes(given: Any) -> bytes:
    """Return the bytes of an input for saving it next to its finding."""
    if isinstance(given, bytes):
        return given
    return (given if isinstance(given, str) else repr(given)).encode("utf-8", "backslashreplace")
