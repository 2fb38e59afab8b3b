"""An answer as clients get it, whole or in pieces: as `generate` says it, cut before the first stop text."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Gives out an answer piece by piece, without the stop text that ends it and what comes behind.

    Decoding stops as soon as one of the stop texts is complete, so the one that is complete first counts, and of
    those that end at the same place the longest. What may be the beginning of a stop text is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False  # by one of them

    def feed(self, piece: str) -> str:
        """Take the next piece of the answer and return what may be given out now."""
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
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """Gives out an answer piece by piece, up to its stop text and without blanks at its ends.

    Where the pieces are put together, they are what `generate` says.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._cut = StopText(stops)
        self._begun = False
        self._blanks = ""  # which stay if something follows

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
        """Return what was held back, now that nothing follows."""
        text = self._blanks + self._cut.end()
        return text.rstrip() if self._begun else text.strip()


def answer_text(text: str, stops: Sequence[str] = ()) -> str:
    """Return a whole answer up to its stop text and without blanks at its ends."""
    answer = AnswerText(stops)
    return answer.feed(text) + answer.end()


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
