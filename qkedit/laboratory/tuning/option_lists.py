"""The lists in options of `sweep` and `tune`: alternatives of layers, numbers, shares, names and protections.

This module does not import torch, so that a command can refuse an invalid request quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qkedit.errors import UsageError
from qkedit.spectral.sink import protected_directions

Value = TypeVar("Value")


def alternatives(text: str, option: str = "--layers") -> tuple[str, ...]:
    """Return the alternatives of an option: `0-1;2-3;mid` are three. Raises UsageError if one is empty."""
    return separated(text, ";", str, option, "separate alternatives by ; as in '0-1;2-3'")


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse numbers such as `1,2,4`. Raises UsageError for anything else."""
    return separated(text, ",", int, option, "give whole numbers such as 1,2,4,8")


def shares(text: str, option: str) -> tuple[float, ...]:
    """Parse shares such as `0,0.5`. Raises UsageError for anything else."""
    return separated(text, ",", float, option, "give shares such as 0,0.5")


def names(text: str, option: str) -> tuple[str, ...]:
    """Parse words such as `full,symmetric`. Raises UsageError if one is empty."""
    return separated(text, ",", str, option, "separate names by commas")


def protections(text: str, option: str = "--protect") -> tuple[int, ...]:
    """Parse numbers of protected directions: `none,sink:4` are 0 and 4. Raises UsageError for anything else."""
    return separated(text, ",", protected_directions, option, "give none, sink or sink:4, separated by commas")


def separated(text: str, separator: str, read: Callable[[str], Value], where: str, remedy: str) -> tuple[Value, ...]:
    """Parse the parts of a list in order, without repetitions. Raises UsageError if one cannot be read."""
    parts = [part.strip() for part in text.split(separator)]
    try:
        if not all(parts):
            raise ValueError
        return tuple(dict.fromkeys(read(part) for part in parts))
    except ValueError:
        raise UsageError(f"{text!r} cannot be read", where=where, remedy=remedy) from None
