"""An answer for clients, whole or in pieces: the output of `generate`, cut before the first stop text."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Releases an answer piece by piece, without the stop text that ends it and anything after it.

    Decoding ends as soon as a stop text is complete, so the first complete one counts, and the longest of those that
    end at the same position. Text that may be the beginning of a stop text is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False  # by a stop text

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer and return the text that can be released."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """Releases an answer piece by piece, up to its stop text and without blanks at its ends.

    The joined pieces equal the output of `generate`.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._cut = StopText(stops)
        self._begun = False
        self._blanks = ""  # released if something follows

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer and return what may be given out now."""
        text = self._blanks + self._cut.feed(piece)
        if not self._begun:
            text = text.lstrip()
        out = text.rstrip()
        self._blanks = text[len(out) :]
        self._begun = self._begun or bool(out)
        return out

    def end(self) -> str:
        """Return the text that was held back, now that nothing follows."""
        text = self._blanks + self._cut.end()
        return text.rstrip() if self._begun else text.strip()


def answer_text(text: str, stops: Sequence[str] = ()) -> str:
    """Return a whole answer up to its stop text and without blanks at its ends."""
    answer = AnswerText(stops)
    return answer.feed(text) + answer.end()


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of `text` that begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
