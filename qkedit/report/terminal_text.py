"""Spell what would steer a terminal instead of being read.

Names of files and tensors, answers of models and messages of templates are strangers' text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

# Control characters but line break and tab, marks that turn the direction of writing, line separators, and the
# surrogates that stand for bytes of a file name that are not UTF-8.
_STEERING = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_INVISIBLE = re.compile(f"[{_STEERING}]")
_NOT_ON_ONE_LINE = re.compile(f"[{_STEERING}\n\t]")


def visible(text: str) -> str:
    """Return text in which control characters are spelled as Python does (`\\x1b`); line breaks and tabs stay."""
    return _INVISIBLE.sub(_spelled, text)


def on_one_line(text: str) -> str:
    """Return text without a line break or a control character: they are spelled (`\\n`), so that no line is forged."""
    return _NOT_ON_ONE_LINE.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Visible:
    """Anything that rich shows, with every control character in it spelled."""

    def __init__(self, shown: RenderableType) -> None:
        # Text itself drops some of them without a word.
        self._shown = Text(visible(shown)) if isinstance(shown, str) else shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it, and spell what is left in its pieces."""
        return self._pieces(console, options)

    def _pieces(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._shown, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
