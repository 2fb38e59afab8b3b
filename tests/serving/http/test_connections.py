"""Test connections with incomplete requests, too many connections, and the log of both."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from qkedit.serving.http.connections import BACKLOG, Connections, most_connections
from qkedit.serving.http.server_log import SeldomWarnings, log_to

HALF = b"POST / HTTP/1.1\r\nHost: it\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: it\r\n\r\n"


class Client:
    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = streams

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        return await self.reader.readexactly(2)

    async def rest(self) -> bytes:
        """Return all bytes until the server closes the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


def run(
    case: Callable[[Callable[[], Awaitable[Client]], asyncio.Event], Awaitable[None]],
    connections: Connections,
    body: bytes = b"ok",
) -> None:
    """Serve an application that answers on a signal of the test."""

    length = str(len(body)).encode()

    async def served() -> None:
        may_answer = asyncio.Event()
        may_answer.set()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await may_answer.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
            await send({"type": "http.response.body", "body": body})

        config = uvicorn.Config(connections.noting(application), lifespan="off", log_config=None, ws="none")
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: connections.protocol(config=config, server_state=state, app_state={}, _loop=None), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()

        async def connect() -> Client:
            client = Client(await asyncio.open_connection(*address))
            clients.append(client)
            return client

        clients: list[Client] = []
        await case(connect, may_answer)
        for client in clients:
            client.writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(served(), 20))


def test_endless_headers_time_out() -> None:
    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        half, silent = await connect(), await connect()

        async def trickle() -> None:
            half.writer.write(HALF)
            while True:
                half.writer.write(b"a: b\r\n")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        assert (await half.rest()).startswith(b"HTTP/1.1 408")
        trickling.cancel()
        assert await silent.rest() == b""

    run(case, Connections(10, 0.1, 600))


def test_the_deadline_applies_to_each_request_and_not_to_answers() -> None:
    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        second, slow = await connect(), await connect()
        second.writer.write(WHOLE)
        assert await second.answer() == b"ok"
        second.writer.write(HALF)
        may_answer.clear()
        slow.writer.write(WHOLE)
        while len(connections.waiting) > 1:
            await asyncio.sleep(0)
        (waiting,) = connections.waiting
        while not waiting.begun:
            await asyncio.sleep(0)
        waiting.too_late()
        assert (await second.rest()).startswith(b"HTTP/1.1 408")
        assert not connections.waiting
        may_answer.set()
        assert await slow.answer() == b"ok"

    connections = Connections(10, 600, 600)
    run(case, connections)


@pytest.mark.parametrize("seconds", [600, 0.1])
def test_an_unread_answer_times_out(seconds: float) -> None:
    """The answer exceeds the system's buffers; the end of the connection waits for it too."""

    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        deaf = await connect()
        deaf.writer.write(WHOLE)
        while not connections.open:
            await asyncio.sleep(0.01)
        while connections.open:
            await asyncio.sleep(0.01)

    connections = Connections(10, seconds, 0.1)
    run(case, connections, bytes(32 << 20))


def test_a_slowly_read_answer_is_complete() -> None:
    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        slow = await connect()
        slow.writer.write(WHOLE)
        await slow.reader.readuntil(b"\r\n\r\n")
        await slow.reader.readexactly(32 << 20)
        assert connections.open

    connections = Connections(10, 600, 600)
    run(case, connections, bytes(32 << 20))


@pytest.mark.parametrize("answering", [False, True], ids=["before the answer", "during the answer"])
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "later"])
def test_a_request_with_an_invalid_body_closes_the_connection(
    together: bool, answering: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is closed, with a status of 400 at most, and the log has no traceback."""
    head = b"GET / HTTP/1.1\r\nHost: it\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        if not answering:
            may_answer.clear()
        client = await connect()
        client.writer.write(head + (b"no length" * 5 + b"\r\n" if together else b""))
        if not together:
            if answering:
                await client.reader.readuntil(b"\r\n\r\n")
            else:
                while connections.waiting:
                    await asyncio.sleep(0)
            client.writer.write(b"no length\r\n")
        answer = await client.rest()
        assert not together or answer.startswith(b"HTTP/1.1 400")
        may_answer.set()
        while connections.open:
            await asyncio.sleep(0)
        new = await connect()
        new.writer.write(WHOLE)
        assert await asyncio.wait_for(new.reader.readuntil(b"\r\n\r\n"), 5)

    connections = Connections(10, 600, 600)
    # Larger than the system's buffers, so that it is still being sent when the rest of the request arrives.
    run(case, connections, bytes(32 << 20) if answering else b"ok")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_too_many_connections_close_the_longest_waiting_one(caplog: pytest.LogCaptureFixture) -> None:
    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        half = [await connect() for _ in range(3)]
        for client in half:
            client.writer.write(HALF)
        # Served at once; the connection that has waited longest is closed.
        for client in half[:2]:
            new = await connect()
            new.writer.write(WHOLE)
            assert await new.answer() == b"ok"
            assert await client.rest() == b""
        assert len(connections.open) == 3

    connections = Connections(3, 600, 600)
    run(case, connections)
    assert caplog.text.count("more than 3 connections were opened") == 2


def test_answers_in_progress_are_not_cut_for_a_new_connection() -> None:
    async def case(connect: Callable[[], Awaitable[Client]], may_answer: asyncio.Event) -> None:
        may_answer.clear()
        busy = [await connect() for _ in range(2)]
        for client in busy:
            client.writer.write(WHOLE)
        while connections.waiting:
            await asyncio.sleep(0)
        assert await (await connect()).rest() == b""
        may_answer.set()
        assert [await client.answer() for client in busy] == [b"ok", b"ok"]

    connections = Connections(2, 600, 600)
    run(case, connections)


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "most"),
    [(1024, 4096, 1024, 256), (256, 4096, 256 + 256, 256), (256, 400, 400, 144), (256, 256, 256, 16)],
)
def test_the_number_of_connections_follows_the_limit_of_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int, most: int
) -> None:
    import resource

    limit = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limit[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, given: limit.append(given))
    assert most_connections(256) == most
    assert limit[-1] == (raised, hard)
    assert BACKLOG < 256


def test_each_kind_of_warning_is_logged_once_a_minute() -> None:
    time = [0.0]
    seldom = SeldomWarnings(lambda: time[0])
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(seldom)
    log = logging.Logger("it")
    log.addHandler(handler)
    for second in range(150):
        time[0] = second
        log.warning("connection %d", second)
        log.error("other")
        log.info("asked")
    lines = stream.getvalue().splitlines()
    assert lines.count("asked") == 150
    assert [line for line in lines if line.startswith("connection")] == [
        "connection 0",
        "connection 60 (59 more like it since the last line)",
        "connection 120 (59 more like it since the last line)",
    ]
    assert len(lines) == 156


@pytest.mark.parametrize("requests", [True, False])
def test_requests_and_resource_errors_are_logged(requests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    before = {
        name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in ("uvicorn", "asyncio")
    }
    try:
        log_to(stream, requests=requests)
        logging.getLogger("uvicorn.access").info("a request")
        for _ in range(2000):
            logging.getLogger("asyncio").error("socket.accept() out of system resource")
    finally:
        for name, (handlers, level) in before.items():
            logging.getLogger(name).handlers[:] = handlers
            logging.getLogger(name).setLevel(level)
    assert stream.getvalue().count("a request") == requests
    assert stream.getvalue().count("out of system resource") == 1
