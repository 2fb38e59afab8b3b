"""Check every request before the application: its key, its size, and whether its client is still connected.

This is plain ASGI around the application, so that a body is refused while it arrives, not when it is in memory.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from qkedit.serving.http.metrics import Metrics
from qkedit.serving.limits import Limits
from qkedit.serving.requests.request_errors import HUNG_UP, RequestError
from qkedit.serving.requests.request_fields import cut

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEALTH = "/health"
# A client reads the answer only after it has sent its body, so a slightly too long body is read and discarded.
_READ_ON = 4
# Set when the client of the current request has disconnected; one event per request.
hung_up: ContextVar[threading.Event] = ContextVar("hung_up")
# Called when the answer to the request is made, before its last part is sent: this frees the request's slot.
answered: ContextVar[Callable[[], None]] = ContextVar("answered")
# The names of this machine for a browser. A page whose name was made to resolve to it ("DNS rebinding") has another.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class RequestGuard:
    """The middleware with the checks of an application.

    Args:
        application: the application.
        api_key: the key that clients must send, except for `/health`; None admits everybody.
        limits: the limits of a request.
        metrics: the counters of requests.
        paths: the paths to count by; all others count as "other".
        names: the permitted names of this server in the `Host` header; None for any.
    """

    def __init__(
        self,
        application: Application,
        *,
        api_key: str | None,
        limits: Limits,
        metrics: Metrics,
        paths: frozenset[str],
        names: frozenset[str] | None = None,
    ) -> None:
        self._application = application
        self._api_key = api_key
        self._limits = limits
        self._metrics = metrics
        self._paths = paths
        self._names = names
        self._under_way = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        start, status = time.perf_counter(), HUNG_UP

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._checked(scope, receive, noting_status)
        except RequestError as error:
            await _refuse(error, noting_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.perf_counter() - start)

    async def _checked(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self._check_host(headers.get(b"host", b""))
        if scope["path"] != HEALTH:
            self._check_key(headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            await self._application(scope, receive, send)
            return
        if self._under_way >= self._limits.waiting:
            raise RequestError(
                f"{self._under_way} requests are in progress, which is the limit of this server",
                remedy="try again later",
                status=503,
            )
        free = self._taken_place()
        try:
            body = await self._body(headers.get(b"content-length", b""), receive)
            if body is not None:
                reset = answered.set(free)
                await self._with_body(body, scope, receive, _before_the_end(send, free))
                answered.reset(reset)
        finally:
            free()

    def _taken_place(self) -> Callable[[], None]:
        """Count a request as in progress, and return a function whose first call frees its slot."""
        self._under_way += 1
        self._metrics.waiting.inc()
        taken = True

        def free() -> None:
            nonlocal taken
            if taken:
                taken = False
                self._under_way -= 1
                self._metrics.waiting.dec()

        return free

    def _check_host(self, header: bytes) -> None:
        if self._names is None or not header:
            return
        named = header.decode("latin-1").strip().lower()
        host, colon, port = named.rpartition(":")
        if (host if colon and port.isdigit() else named).rstrip(".") not in self._names:
            raise RequestError(
                f"a server for this machine only does not have the name {cut(named)!r}",
                where="Host",
                remedy="address it as localhost, or start it with an API key",
                status=403,
            )

    def _check_key(self, header: bytes) -> None:
        if self._api_key is None:
            return
        kind, _, key = header.partition(b" ")
        # The time of the comparison does not reveal how much of the key is right.
        if kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._api_key.encode()):
            return
        raise RequestError(
            "the API key is missing or wrong",
            remedy="send it as `Authorization: Bearer KEY`",
            status=401,
            code="invalid_api_key",
        )

    async def _body(self, announced: bytes, receive: Receive) -> bytes | None:
        """Return the whole body, or None if the client disconnects before it has arrived."""
        most, size = self._limits.body, 0
        if announced.isdigit() and int(announced) > _READ_ON * most:
            raise self._too_long()
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size <= most:
                        body += chunk
                    else:
                        body.clear()
                    if size > _READ_ON * most:
                        raise self._too_long()
                    if not message.get("more_body", False):
                        break
        except TimeoutError as error:
            raise RequestError(
                f"the body did not arrive within {self._limits.seconds:g} seconds", remedy="send it again", status=408
            ) from error
        if size > most:
            raise self._too_long()
        return bytes(body)

    def _too_long(self) -> RequestError:
        return RequestError(
            f"the body is longer than this server's limit of {self._limits.body} bytes",
            remedy="send smaller or fewer images",
            status=413,
        )

    async def _with_body(self, body: bytes, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the application, watching for a disconnect of the client."""
        gone, left = threading.Event(), asyncio.Event()
        bodies = [body]
        del body  # not needed once the application has read it

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            left.set()

        async def replayed() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        watching = asyncio.create_task(watch())
        reset = hung_up.set(gone)
        try:
            await self._application(scope, replayed, send)
        finally:
            hung_up.reset(reset)
            watching.cancel()


def _before_the_end(send: Send, free: Callable[[], None]) -> Send:
    """Return a `send` that calls `free` before the client can have the whole answer."""
    left: float = float("inf")

    async def sent(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.start":
            length = dict(message["headers"]).get(b"content-length", b"")
            left = int(length) if length.isdigit() else left
        elif message["type"] == "http.response.body":
            left -= len(message.get("body", b""))
            if left <= 0 or not message.get("more_body", False):
                free()
        await send(message)

    return sent


async def _refuse(error: RequestError, send: Send) -> None:
    content = json.dumps(error.document()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    if error.status in (408, 413):
        # The rest of the body is not read, so the connection cannot be reused.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
