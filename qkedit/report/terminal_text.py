"""Escape control characters, which a terminal would execute instead of show.

Names of files and tensors, answers of models and messages of templates are untrusted text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.segment import Segment

# Control characters except line break and tab, marks that change the writing direction, line separators, and the
# surrogates that represent bytes of a file name that are not UTF-8.
_STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_INVISIBLE = re.compile(f"[{_STEERING}]")
_NOT_ON_ONE_LINE = re.compile(f"[{_STEERING}\n\t]")


def visible(text: str) -> str:
    """Escape control characters as Python does (`\\x1b`); line breaks and tabs are kept."""
    return _INVISIBLE.sub(_spelled, text)


def on_one_line(text: str) -> str:
    """Escape line breaks and control characters (`\\n`), so that a text cannot forge a line of output."""
    return _NOT_ON_ONE_LINE.sub(_spelled, text)


def lines(*texts: str) -> str:
    """Return texts one below the other, each on one line: names in them forge none."""
    return "\n".join(map(on_one_line, texts))


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Visible:
    """Anything that rich can show, with every control character in it escaped."""

    def __init__(self, shown: RenderableType) -> None:
        from rich.text import Text

        # Text itself silently drops some of them.
        self._shown = Text(visible(shown)) if isinstance(shown, str) else shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the content, and escape what is left in its segments."""
        return self._pieces(console, options)

    def _pieces(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
