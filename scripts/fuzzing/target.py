"""A target of the fuzzer: inputs from a random generator, and a check of how qkedit handles one."""

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
    """qkedit did what it promises not to do; `kind` is one word for it."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind = kind
        self.what = what
        super().__init__(f"{kind}: {what}")


class Target(ABC):
    """One format of files or one field of a request.

    Attributes:
        name: as `--only` takes it.
        subject: what is made up, for the document.
        seconds: longest time that one input may take, by far more than it needs.
        megabytes: largest growth of the process's peak memory by one input.
    """

    name: ClassVar[str]
    subject: ClassVar[str]
    seconds: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 300

    def __init__(self, work: Path) -> None:
        """Take an empty directory to work in, which is removed afterwards."""
        self.work = work

    def prepare(self) -> None:  # noqa: B027 - most need it, some do not
        """Build valid inputs, which are changed later."""

    @abstractmethod
    def generate(self, random: Random) -> Any:
        """Return an input; the same one for a generator in the same state."""

    @abstractmethod
    def check(self, given: Any) -> Outcome:
        """Let qkedit read an input. Raises Finding, or whatever qkedit should not have raised."""

    def close(self) -> None:  # noqa: B027 - likewise
        """Stop what `prepare` started."""


def as_bytes(given: Any) -> bytes:
    """Return an input as it is saved next to a finding."""
    if isinstance(given, bytes):
        return given
    return (given if isinstance(given, str) else repr(given)).encode("utf-8", "backslashreplace")
