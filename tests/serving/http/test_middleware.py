"""Test the middleware before the application, with messages of the ASGI protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from qkedit.serving.http.metrics import Metrics
from qkedit.serving.http.middleware import LOCAL_NAMES, Message, Receive, RequestGuard, Send, hung_up
from qkedit.serving.limits import Limits

CHAT = "/v1/chat/completions"
DISCONNECT = {"type": "http.disconnect"}


class Application:
    """Read the body, wait if requested, and answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.left: list[bool] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self.bodies.append(scope["type"].encode())
            return
        if scope["method"] == "POST":
            message = await receive()
            assert not message["more_body"]
            self.bodies.append(message["body"])
            waiting = asyncio.create_task(receive())
            await asyncio.wait({waiting, asyncio.create_task(self.may_answer.wait())}, return_when="FIRST_COMPLETED")
            self.left.append(waiting.done())
            assert hung_up.get().is_set() == waiting.done()
            waiting.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


class Case:
    """A guard with its application, and clients."""

    def __init__(self, api_key: str | None = None, names: frozenset[str] | None = None, **limits: Any) -> None:
        self.application, self.metrics = Application(), Metrics()
        self.gate = RequestGuard(
            self.application,
            api_key=api_key,
            limits=Limits(**limits),
            metrics=self.metrics,
            paths=frozenset({CHAT, "/health"}),
            names=names,
        )

    async def ask(
        self, *messages: Message, method: str = "POST", path: str = CHAT, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Send a request, and return status, headers and body of the answer."""
        arriving: asyncio.Queue[Message] = asyncio.Queue()
        for message in messages:
            arriving.put_nowait(message)
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        await self.gate(scope, arriving.get, send)
        if not sent:
            return 0, {}, b""
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


def body(content: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def sentence(content: bytes) -> str:
    return json.loads(content)["error"]["message"]


def run(case: Any) -> Any:
    return asyncio.run(asyncio.wait_for(case, 20))


def test_a_body_in_pieces_is_joined() -> None:
    async def case() -> None:
        it = Case(body=6)
        assert await it.ask(body(b"abc", more=True), body(b"def")) == (200, {}, b"answer")
        assert await it.ask(method="GET", path="/health") == (200, {}, b"answer")
        await it.gate({"type": "lifespan"}, asyncio.Queue().get, asyncio.Queue().put)
        assert it.application.bodies == [b"abcdef", b"lifespan"]
        assert it.application.left == [False]

    run(case())


@pytest.mark.parametrize(
    ("headers", "messages"),
    [
        ({}, [body(b"abcdefg")]),
        ({"content-length": "7"}, [body(b"abc", more=True), body(b"defg")]),
        ({}, [body(b"abcd", more=True)] * 7),  # endless: read up to four times the limit
        ({"Content-Length": "25"}, []),  # not read at all if its header names the length
    ],
)
def test_a_too_long_body_is_refused(headers: dict[str, str], messages: list[Message]) -> None:
    async def case() -> None:
        it = Case(body=6)
        status, answered, content = await it.ask(*messages, headers=headers)
        assert (status, answered[b"connection"]) == (413, b"close")
        assert "limit of 6 bytes" in sentence(content)
        assert it.application.bodies == []

    run(case())


def test_a_missing_body_times_out() -> None:
    async def case() -> None:
        it = Case(seconds=0.05)
        status, _, content = await it.ask(body(b"abc", more=True))
        assert status == 408
        assert "did not arrive within 0.05 seconds" in sentence(content)
        assert await it.ask(body(b"abc", more=True), DISCONNECT) == (0, {}, b"")
        assert it.application.bodies == []
        assert f'qkedit_requests_total{{path="{CHAT}",status="499"}} 1.0' in it.metrics.text().decode()

    run(case())


def test_requests_need_the_key() -> None:
    async def case() -> None:
        it = Case(api_key="clé")
        for header, expected in {
            "Bearer clé": 200,
            "bearer  clé": 200,
            "Bearer cle": 401,
            "Bearer ": 401,
            "clé": 401,
            "Basic clé": 401,
        }.items():
            status, answered, content = await it.ask(body(b"a"), headers={"Authorization": header})
            assert status == expected, header
            if status == 401:
                assert answered[b"www-authenticate"] == b"Bearer"
                assert json.loads(content)["error"]["code"] == "invalid_api_key"
        assert (await it.ask(body(b"a")))[0] == 401
        assert (await it.ask(method="GET", path="/metrics"))[0] == 401
        assert (await it.ask(method="GET", path="/health"))[0] == 200

    run(case())


def test_too_many_waiting_requests_are_refused() -> None:
    async def case() -> None:
        it = Case(waiting=2)
        it.application.may_answer.clear()
        waiting = [asyncio.create_task(it.ask(body(b"a"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert "qkedit_requests_under_way 2.0" in it.metrics.text().decode()
        status, answered, content = await it.ask(body(b"b"))
        assert (status, answered[b"retry-after"]) == (503, b"1")
        assert "2 requests are in progress" in sentence(content)
        assert (await it.ask(method="GET", path="/health"))[0] == 200
        it.application.may_answer.set()
        assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert (await it.ask(body(b"c")))[0] == 200
        assert it.application.bodies == [b"a", b"a", b"c"]
        text = it.metrics.text().decode()
        assert "qkedit_requests_under_way 0.0" in text
        assert f'qkedit_requests_total{{path="{CHAT}",status="503"}} 1.0' in text

    run(case())


@pytest.mark.parametrize(
    ("length", "bodies"),
    [
        (b"6", [(b"answer", False)]),
        (b"6", [(b"ans", True), (b"wer", True), (b"", False)]),  # complete for the client before the last message
        (None, [(b"ans", True), (b"wer", False)]),
    ],
)
def test_a_request_is_finished_before_its_answer_is_complete(
    length: bytes | None, bodies: list[tuple[bytes, bool]]
) -> None:
    """A client that sends its next request at once must not be refused because of the last one."""
    headers = [] if length is None else [(b"content-length", length)]

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for content, more in bodies:
            await send(body(content, more))

    async def case() -> None:
        it = Case(waiting=1)
        it.gate._application = application
        under_way: list[tuple[bytes, int]] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                under_way.append((message["body"], it.gate._under_way))

        async def receive() -> Message:
            return body(b"a")

        await it.gate({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)
        sent = b""
        for content, count in under_way:
            sent += content
            assert count == (0 if sent == b"answer" else 1)
        assert it.gate._under_way == 0

    run(case())


def test_foreign_host_names_and_origins_are_refused() -> None:
    async def case() -> None:
        it = Case(names=LOCAL_NAMES)
        for host, expected in {
            "localhost": 200,
            "LocalHost.:8000": 200,
            "127.0.0.1:8000": 200,
            "[::1]:8000": 200,
            "[::1]": 200,
            "evil.example": 403,
            "evil.example:8000": 403,
            "localhost.evil.example": 403,
            "127.0.0.1.evil.example:80": 403,
            "localhost:evil": 403,
            "[::1]:8000:1": 403,
        }.items():
            for path, method in ((CHAT, "POST"), ("/health", "GET")):
                status, _, content = await it.ask(body(b"a"), method=method, path=path, headers={"Host": host})
                assert status == expected, host
                assert status == 200 or "does not have the name" in sentence(content)
        assert (await it.ask(body(b"a")))[0] == 200  # browsers always send it
        assert (await Case().ask(body(b"a"), headers={"Host": "evil.example"}))[0] == 200

    run(case())


def test_a_disconnect_is_noticed_while_the_answer_is_made() -> None:
    async def case() -> None:
        it = Case()
        it.application.may_answer.clear()
        assert (await it.ask(body(b"a"), DISCONNECT))[0] == 200  # the application decides how to react
        assert it.application.left == [True]

    run(case())


def test_unknown_paths_are_counted_together() -> None:
    async def case() -> None:
        it = Case()
        for path in ("/a", "/b"):
            await it.ask(method="GET", path=path)
        assert 'qkedit_requests_total{path="other",status="200"} 2.0' in it.metrics.text().decode()

    run(case())
