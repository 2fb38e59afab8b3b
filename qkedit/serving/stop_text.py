"""Cut an answer before the first stop text, when the answer comes in pieces too."""

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


def without_stop(text: str, stops: Sequence[str]) -> str:
    """Return a whole answer without the stop text that ends it."""
    cut = StopText(stops)
    return cut.feed(text) + cut.end()


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
