"""What installed packages add to qkedit by entry points; whatever a stranger's module does is one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qkedit.errors import QkeditError, first_line


def all_points_of_other_packages(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group by name; several packages may give one name."""
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


@cache
def points_of_other_packages(group: str) -> Mapping[str, EntryPoint]:
    """Return one entry point of each name in a group."""
    return {point.name: point for point in entry_points(group=group)}


def package_of(point: EntryPoint) -> str:
    """Return the package that an entry point comes from, as messages name it."""
    return point.dist.name if point.dist is not None else point.value


def load_entry_point(point: EntryPoint, noun: str, where: str) -> Any:
    """Return what an entry point names.

    Args:
        point: the entry point.
        noun: what it stands for, such as `plug-in`.
        where: the option that named it.

    Raises:
        QkeditError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # whatever a stranger's module raises while it is imported
        raise QkeditError(
            f"the {noun} {point.name} of the package {package_of(point)} cannot be imported ({first_line(error)})",
            where=where,
            remedy="repair or uninstall that package",
        ) from error
