"""The errors for every failure that a user can cause: one sentence with what, where and what to do.

The command line prints the sentence and exits with `exit_code`; a library caller catches `QkeditError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

# In characters. A path may have 4,096, and lists of names are useful; nobody reads more than that.
LONGEST_PART = 5_000
_KEPT_AT_EACH_END = 2_000
_LONGEST_SLIP = 100  # characters; a longer word is not a typing error, and slow to compare
# The end of a sentence before the next one, but not an initial or "e.g." before a name.
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!e\.g)(?<!i\.e)[.?!] (?=[A-Z])")
_NUMBER = re.compile(r"\d{101,}")
# The messages of torch, its GPU libraries and Apple's in a plain RuntimeError.
_CPU_FULL = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_DEVICE_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")


class QkeditError(Exception):
    """A failure: `what` happened at `where`, and `remedy` is the advice.

    Args:
        what: the fact, without a full stop: "the header is longer than the file".
        where: the file, tensor, option or layer it concerns; may be empty.
        remedy: what the reader can do now, as an imperative: "download the shard again".

    Each part may quote a file or a request; the middle of a part longer than `LONGEST_PART` is left out, and
    so are the digits of a number after the first 20 if there are more than 100.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = map(_bounded, (what, where, remedy))
        super().__init__(self.what, self.where, self.remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling between processes, which does not handle keyword arguments."""
        return partial(type(self), self.what, where=self.where, remedy=self.remedy), (), self.__dict__

    def __str__(self) -> str:
        """Return `where: what; remedy.` without empty parts; a guess is a question."""
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        if not self.remedy:
            return f"{sentence}."
        return f"{sentence}; {self.remedy}{'?' if self.remedy.startswith('did you mean ') else '.'}"


class UsageError(QkeditError):
    """The request itself is invalid: an unknown layer, two options that exclude each other."""

    exit_code = 2


class CheckpointError(QkeditError):
    """The files are not a checkpoint qkedit can trust: broken, incomplete or of an unknown form."""


class UnsupportedForm(CheckpointError):
    """The checkpoint is valid, but its query-key product has a form that qkedit does not edit."""


class VerificationError(QkeditError):
    """A check found a difference; `mismatches` names what differs."""

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", remedy: str = "", mismatches: tuple[str, ...] = ()) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.mismatches = mismatches


def _bounded(text: str) -> str:
    text = _NUMBER.sub(lambda digits: f"{digits[0][:20]}… ({len(digits[0])} digits)", text)
    if len(text) <= LONGEST_PART:
        return text
    left_out = len(text) - 2 * _KEPT_AT_EACH_END
    return f"{text[:_KEPT_AT_EACH_END]} … ({left_out} characters left out) … {text[-_KEPT_AT_EACH_END:]}"


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: `1 head`, `2 heads`; `several` replaces `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of another library's error message, for quoting within a sentence of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].rstrip(".")


def read_failure(error: BaseException) -> str:
    """Return the reason why a file could not be read, without its path, which the sentence names already."""
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or first_sentence(error)


def near_words(word: str, known: Iterable[str], most: int = 1, likeness: float = 0.6) -> tuple[str, ...]:
    """Return the known words that a misspelled word may mean, the nearest first.

    Args:
        word: the given word.
        known: the possible words.
        most: the maximum number of words to return.
        likeness: the minimum similarity by difflib, from 0 to 1.
    """
    import difflib  # here, since only failures need it

    return tuple(difflib.get_close_matches(word, list(known), most, likeness)) if len(word) <= _LONGEST_SLIP else ()


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "choose among") -> str:
    """Return the remedy for an unknown word: the nearest known one, else all of them after `otherwise`."""
    known = tuple(known)
    near = near_words(word, known)
    return f"did you mean {near[0]!r}" if near else f"{otherwise} {', '.join(known)}"


def memory_that_ran_out(error: BaseException) -> str:
    """Return which memory is full according to an error, `memory` or `the device's memory`, or "".

    torch has an error class only for GPUs, and importing torch for it would delay every failure by a second.
    """
    said = str(error) if isinstance(error, RuntimeError) else ""
    if type(error).__name__ == "OutOfMemoryError" or any(words in said for words in _DEVICE_FULL):
        return "the device's memory"
    if isinstance(error, MemoryError) or any(words in said for words in _CPU_FULL):
        return "memory"
    return ""
