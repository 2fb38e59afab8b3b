"""Send requests to one or several servers, to each as many at a time as make it answer faster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from qkedit.errors import QkeditError
from qkedit.evaluation.runs.backend import EvalRequest, Reply
from qkedit.evaluation.runs.concurrency import Concurrency

if TYPE_CHECKING:
    from openai import OpenAI


class Unreachable(QkeditError):
    """There is no server at the URL, or it does not answer."""


class AnsweringServer(Protocol):
    """A server that can be asked one question."""

    @property
    def base_url(self) -> str:
        """The server's URL."""
        ...

    def answer(self, client: OpenAI, request: EvalRequest) -> Reply:
        """Return the answer to one question. Raises QkeditError if the request fails."""
        ...


@dataclass(eq=False)
class Lane:
    """One server during a session.

    Attributes:
        server: the server.
        client: the client that holds its connections.
        concurrency: the number of requests that it may have at a time.
        in_progress: the number of requests that it has now.
    """

    server: AnsweringServer
    client: OpenAI
    concurrency: Concurrency
    in_progress: int = 0


# A request, the server it was sent to, and its reply or error.
_Outcome = tuple[Lane, EvalRequest, "Reply | Exception"]


@dataclass
class EndpointSession:
    """Servers that are ready to answer. All must serve the same model.

    Attributes:
        lanes: the servers; one that cannot be reached is left out as long as there is another.
        observed: see `Session`.
    """

    lanes: list[Lane]
    observed: Mapping[str, Any] = field(default_factory=dict)
    _warnings: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> Sequence[str]:
        """See `Session`."""
        return tuple(self._warnings)

    def answers(self, requests: Sequence[EvalRequest]) -> Iterator[tuple[EvalRequest, Reply]]:
        """See `Session`."""
        left = deque(requests)
        failure: Exception | None = None
        done: SimpleQueue[_Outcome] = SimpleQueue()
        while True:
            while failure is None and left and (lane := self._free_lane()) is not None:
                lane.in_progress += 1
                # A daemon thread ends with the process: a silent server does not delay Ctrl-C.
                Thread(target=_put_answer, args=(lane, left.popleft(), done), daemon=True).start()
            if not any(lane.in_progress for lane in self.lanes) and (failure is not None or not left):
                break
            lane, request, outcome = _next(done)
            lane.in_progress -= 1
            if isinstance(outcome, Reply):
                lane.concurrency.answered(time.monotonic())
                yield request, outcome
            elif isinstance(outcome, Unreachable) and self._has_others(lane):
                left.appendleft(request)
                self._leave_out(lane, outcome)
            else:
                failure = failure or outcome
        if failure is not None:
            raise failure

    def _free_lane(self) -> Lane | None:
        """Return the server with the fewest requests among those that may have another."""
        free = [lane for lane in self.lanes if lane.in_progress < lane.concurrency.allowed]
        return min(free, key=lambda lane: lane.in_progress, default=None)

    def _has_others(self, lane: Lane) -> bool:
        return any(one is not lane and one.concurrency.allowed for one in self.lanes)

    def _leave_out(self, lane: Lane, reason: Unreachable) -> None:
        if lane.concurrency.allowed:
            lane.concurrency = Concurrency(0)
            self._warnings.append(f"{reason}; its questions went to the other endpoints")


def _put_answer(lane: Lane, request: EvalRequest, done: SimpleQueue[_Outcome]) -> None:
    try:
        done.put((lane, request, lane.server.answer(lane.client, request)))
    except Exception as error:  # on any error the main thread must not wait for ever
        done.put((lane, request, error))


def _next(done: SimpleQueue[_Outcome]) -> _Outcome:
    """Wait for an outcome, and check for signals every second.

    A signal that arrives between Python's last check for signals and the wait for a lock does not end that wait, so
    Ctrl-C would have no effect until the server answers.
    """
    while True:
        try:
            return done.get(timeout=1)
        except Empty:
            continue
