"""The number of requests that a server gets at a time: fixed, or as many as make it answer faster."""

from __future__ import annotations

from threading import Lock

# The first number and the largest: engines batch a few hundred sequences at most.
FIRST = 8
LARGEST = 256
# Twice the requests must give this many times the answers per second, or the engine was full before.
_WORTHWHILE = 1.1
_FEWEST_ANSWERS = 16


class Concurrency:
    """The number of requests to keep in progress at one server.

    A measured number starts at 8 and doubles as long as that gives at least a tenth more answers per second; the first
    time it does not, the previous number is kept. Each number is measured over twice as many answers, from the time
    when the requests sent under the previous number are answered. A server that refuses because it is busy gets half
    as many requests; answers without refusals raise the number again by quarters, up to its earlier value.

    May be used from several threads.

    Args:
        fixed: the number; None to measure it.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._allowed = self._limit = FIRST if fixed is None else fixed
        self._measuring = fixed is None
        self._rate_before = 0.0  # answers per second under the previous number
        self._to_skip = 0
        self._answered = 0
        self._since: float | None = None
        # Refusals of requests that were sent before the number was lowered do not count against the lower number.
        self._old_refusals = 0
        self._lock = Lock()

    @property
    def allowed(self) -> int:
        """The number of requests that may be in progress."""
        return self._allowed

    def answered(self, now: float) -> None:
        """Record an answer.

        Args:
            now: the time in seconds, of a monotonic clock.
        """
        with self._lock:
            if self._measuring:
                self._measure(now)
            elif self._allowed < self._limit:
                self._answered += 1
                if self._answered >= 2 * self._allowed:
                    self._allowed = min(self._limit, self._allowed + max(1, self._allowed // 4))
                    self._answered = 0

    def refused(self) -> None:
        """Record that the server refused a request because it is busy."""
        with self._lock:
            self._measuring, self._answered = False, 0
            if self._old_refusals:
                self._old_refusals -= 1
                return
            self._limit, self._old_refusals = self._allowed, self._allowed - 1
            self._allowed = max(1, self._allowed // 2)

    def _measure(self, now: float) -> None:
        if self._to_skip:
            self._to_skip -= 1
            return
        if self._since is None:
            self._since = now
            return
        self._answered += 1
        if self._answered < max(_FEWEST_ANSWERS, 2 * self._allowed):
            return
        rate = self._answered / max(now - self._since, 1e-9)
        self._answered = 0
        if rate < _WORTHWHILE * self._rate_before:
            self._allowed //= 2
            self._measuring = False
        elif self._allowed >= LARGEST:
            self._measuring = False
        else:
            self._rate_before, self._to_skip, self._since = rate, self._allowed, None
            self._allowed *= 2
        self._limit = self._allowed
