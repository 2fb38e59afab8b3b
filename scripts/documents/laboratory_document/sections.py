"""Replace the sections of a document that a script writes, which are between two comments."""

from __future__ import annotations

from collections.abc import Iterable

from qkedit.errors import QkeditError


def with_section(text: str, script: str, name: str, lines: Iterable[str]) -> str:
    """Return a document with a section replaced.

    Args:
        text: the document.
        script: the name of the script that writes the section.
        name: the name of the section; empty for the script's only one.
        lines: the new content.

    Raises:
        QkeditError: the document has no such section.
    """
    before, _, after = _split(text, script, name)
    begin, end = edges(script, name)
    content = "\n".join(lines)
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def section(text: str, script: str, name: str) -> list[str]:
    """Return the lines of a section. Raises QkeditError if the document does not have it."""
    return _split(text, script, name)[1].strip("\n").split("\n")


def edges(script: str, name: str) -> tuple[str, str]:
    """Return the comments before and after a section."""
    what = f"{name} of {script}" if name else f"result of {script}"
    return f"<!-- {what}: begin -->", f"<!-- {what}: end -->"


def _split(text: str, script: str, name: str) -> tuple[str, str, str]:
    begin, end = edges(script, name)
    before, found, rest = text.partition(begin)
    content, closed, after = rest.partition(end)
    if not found or not closed:
        raise QkeditError(f"has no {begin} and {end}", where="document", remedy="restore the two comments")
    return before, content, after
