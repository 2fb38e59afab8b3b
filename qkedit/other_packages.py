"""Load the entry points by which installed packages extend qkedit; any failure of theirs is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qkedit.errors import QkeditError, first_sentence


def all_points_of_other_packages(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group by name; several packages may use one name."""
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


@cache
def points_of_other_packages(group: str) -> Mapping[str, EntryPoint]:
    """Return one entry point for each name in a group."""
    return {point.name: point for point in entry_points(group=group)}


def package_of(point: EntryPoint) -> str:
    """Return the package of an entry point, for messages."""
    return point.dist.name if point.dist is not None else point.value


def load_entry_point(point: EntryPoint, noun: str, where: str) -> Any:
    """Import the object that an entry point names.

    Args:
        point: the entry point.
        noun: the kind of the object, such as `plug-in`.
        where: the option that named it.

    Raises:
        QkeditError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # importing a foreign module may raise anything
        raise QkeditError(
            f"the {noun} {point.name} of the package {package_of(point)} cannot be imported ({first_sentence(error)})",
            where=where,
            remedy="repair or uninstall that package",
        ) from error
