"""Limit connections: the number of open ones, and deadlines for a request's headers and for reading the answer.

uvicorn has none of these limits. With some hundred open connections whose headers never end, it runs out of files, and
then retries and logs two thousand times a second; for a client that does not read its answer it waits forever. The
deadline of bodies is in `middleware`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from h11 import LocalProtocolError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger("uvicorn.error")
# New connections that wait to be accepted; each may take a file before the first of them is handled.
BACKLOG = 128
# An upper bound of the files that the model, the log and the event loop have open.
_OTHER_FILES = 128
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_current: ContextVar[_Connection | None] = ContextVar("connection", default=None)


class Connections:
    """The open connections of a server.

    Args:
        most: the maximum number of open connections. For one more, the one idle for longest is closed.
        seconds: the deadline for the headers of a request, counted from the connection or the last answer.
        unread: the deadline for a client to continue reading once the system's buffer is full.
    """

    def __init__(self, most: int, seconds: float, unread: float) -> None:
        self._most = most
        self.seconds = seconds
        self.unread = unread
        self.open: set[_Connection] = set()
        self.waiting: dict[_Connection, None] = {}  # connections without a request, the longest idle first

    def protocol(self, **given: Any) -> asyncio.Protocol:
        """Return the protocol for a new connection, to be passed to uvicorn as `http`."""
        return _Connection(self, AutoHTTPProtocol(**given))

    def noting(self, application: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        """Return an application that notifies its connections of complete request headers."""

        async def noted(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            connection = _current.get() if scope["type"] == "http" else None
            if connection is None:
                await application(scope, receive, send)
                return
            connection.begin()
            try:
                if not connection.is_closing():
                    await application(scope, receive, connection.unless_closing(send))
                await connection.closed()
            finally:
                connection.end()

        return noted

    def add(self, connection: _Connection) -> None:
        """Add a new connection, closing another one, or this one, if there are too many."""
        self.open.add(connection)
        if len(self.open) <= self._most:
            return
        logger.warning("more than %d connections were opened; the longest idle one is closed", self._most)
        next(iter(self.waiting), connection).abort()


class _Connection(asyncio.Protocol):
    """One connection, served by uvicorn's own protocol."""

    def __init__(self, connections: Connections, served: asyncio.Protocol) -> None:
        self._connections = connections
        self._served = served
        self._requests = 0
        self.begun = False  # whether incomplete headers have arrived
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)
        self._served.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self.begun = True
        # The tasks that uvicorn starts for a request inherit it.
        token = _current.set(self)
        try:
            self._served.data_received(data)
        except LocalProtocolError:
            # uvicorn answers bytes that are not HTTP with status 400, even in the middle of another answer, which its
            # parser forbids.
            self.abort()
        finally:
            _current.reset(token)

    def eof_received(self) -> bool | None:
        return self._served.eof_received()

    def pause_writing(self) -> None:
        self._abort_unless_read()
        self._served.pause_writing()

    def resume_writing(self) -> None:
        self._has_been_read()
        self._served.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._has_been_read()
        self._connections.open.discard(self)
        self._served.connection_lost(exc)
        self._lost.set()

    def begin(self) -> None:
        """Record that the headers of a request are complete."""
        self._requests += 1
        self.begun = False
        self._stop_waiting()

    def end(self) -> None:
        """Record that an answer is complete."""
        self._requests -= 1
        if not self._requests:
            self._wait()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing, so that nothing more can be sent.

        uvicorn closes it if the rest of a request is not HTTP, without ending the request's own task.
        """
        return self._transport.is_closing()

    def unless_closing(self, send: _Send) -> _Send:
        """Return a `send` that drops messages once the connection is closing."""

        async def sent(message: MutableMapping[str, Any]) -> None:
            if not self.is_closing():
                await send(message)

        return sent

    async def closed(self) -> None:
        """Wait until a closing connection is closed: before that, uvicorn treats a missing answer as a fault."""
        if self.is_closing() and not self._lost.is_set():
            self._abort_unless_read()
            await self._lost.wait()

    def abort(self) -> None:
        """Close the connection immediately; it counts as closed from now on."""
        self._stop_waiting()
        self._connections.open.discard(self)
        self._transport.abort()

    def too_late(self) -> None:
        """Close the connection because its request is too late."""
        if self.begun:
            self._transport.write(_TOO_LATE)
        # A plain close waits until the client has read its data, which may be never.
        self._abort_unless_read()
        self._transport.close()

    def _abort_unless_read(self) -> None:
        self._has_been_read()
        self._unread = asyncio.get_running_loop().call_later(self._connections.unread, self.abort)

    def _has_been_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self) -> None:
        if self._transport.is_closing():
            return
        self._connections.waiting[self] = None
        self._timer = asyncio.get_running_loop().call_later(self._connections.seconds, self.too_late)

    def _stop_waiting(self) -> None:
        self._connections.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def most_connections(wanted: int) -> int:
    """Return the maximum number of open connections, limited by the files that the system permits.

    The process's own limit is raised first as far as possible.
    """
    try:
        import resource
    except ImportError:  # Windows, which does not have this limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + BACKLOG + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(16, min(wanted, soft - BACKLOG - _OTHER_FILES))
