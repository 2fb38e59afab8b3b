"""An OpenAI-compatible server of one model: the classes behind `transformers serve`, with plug-ins and limits.

    client ── RequestGuard ── transformers' application ── ChatRoute ── transformers' handler ── RequestModel ── model

The application, the handler that puts answers into OpenAI's format, its streaming and the thread for all answers are
transformers'. In addition, bodies and images are checked before they are used (`chat_request`, `image_policy`),
plug-ins act for one answer at a time (`RequestModel`), and all routes except those named here are removed, including
those that load and unload models.

Only this file uses those classes. They are not a documented interface: `serving_packages` checks the version, and
`tests/serving/test_transformers_classes.py` checks the parts used here.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi.responses import Response
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from qkedit.serving.answer_text import AnswerText, answer_text
from qkedit.serving.http.connections import BACKLOG, Connections, most_connections
from qkedit.serving.http.http_errors import answer_errors
from qkedit.serving.http.metrics import CONTENT_TYPE, Metrics
from qkedit.serving.http.middleware import HEALTH, RequestGuard, answered, hung_up
from qkedit.serving.limits import Limits
from qkedit.serving.request_model import RequestModel
from qkedit.serving.requests.image_policy import ImagePolicy
from qkedit.serving.requests.preparation import Preparation
from qkedit.serving.requests.request_errors import RequestError, error_document, status_of
from qkedit.serving.served_model import ServedModel

CHAT, MODELS, METRICS = "/v1/chat/completions", "/v1/models", "/metrics"
PATHS = frozenset({CHAT, MODELS, METRICS, HEALTH})


def build_application(
    served: ServedModel, policy: ImagePolicy, *, api_key: str | None = None, names: frozenset[str] | None = None
) -> RequestGuard:
    """Return the ASGI application that serves a model.

    Args:
        served: the loaded model.
        policy: the images that requests may have, and all limits.
        api_key: the key that clients must send; None admits everybody.
        names: the permitted names of the server; None for any.
    """
    metrics, state, manager = Metrics(), GenerationState(), _OneModel(served.name)
    chat: Any = ChatRoute(served, policy, metrics, manager, state)
    nobody: Any = None  # the handler of removed routes
    application = build_server(manager, chat, nobody, nobody, nobody, nobody, state)
    application.router.routes[:] = [
        route for route in application.router.routes if getattr(route, "path", None) in (CHAT, MODELS, HEALTH)
    ]
    application.add_api_route(METRICS, lambda: Response(metrics.text(), media_type=CONTENT_TYPE))
    application.add_api_route(f"{MODELS}/{{name:path}}", manager.one_model)
    answer_errors(application)
    return RequestGuard(application, api_key=api_key, limits=policy.limits, metrics=metrics, paths=PATHS, names=names)


def run_server(
    application: RequestGuard,
    listening: socket.socket,
    *,
    ready: Callable[[], None],
    log: bool,
    limits: Limits,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the answers in progress. Must be called on the main thread.

    Args:
        application: the result of `build_application`.
        listening: a socket that is bound to an address, but not listening yet.
        ready: called when requests are accepted.
        log: whether to write a line for every request.
        limits: the limits of connections.
    """
    # uvicorn's own log configuration would write requests to standard output, among the results.
    connections = Connections(most_connections(limits.connections), limits.header_seconds, limits.seconds)
    protocol: Any = connections.protocol
    config = uvicorn.Config(
        connections.noting(application),
        http=protocol,
        ws="none",
        log_config=None,
        access_log=log,
        server_header=False,
        backlog=BACKLOG,
    )
    # After the requested stop, uvicorn raises the signal once more.
    with suppress(KeyboardInterrupt):
        _Server(config, ready).run(sockets=[listening])


class ChatRoute:
    """Answers `/v1/chat/completions`; the chat handler of transformers' application.

    Args:
        served: the model.
        policy: the images that are accepted.
        metrics: the counters of answers.
        manager, state: the shared objects of transformers' handlers.
    """

    def __init__(
        self, served: ServedModel, policy: ImagePolicy, metrics: Metrics, manager: ModelManager, state: GenerationState
    ) -> None:
        self._served = served
        self._preparation = Preparation(served, policy)
        self._metrics = metrics
        self._manager = manager
        self._state = state

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answer one request. Raises RequestError for one that cannot be served."""
        prepared = await self._preparation.prepared(body)
        request = prepared.request
        model = self._served.request_model(request, hung_up.get(), self._metrics)
        handler = _Handler(self._manager, self._state, model, request.decoding.stop, answered.get())
        return await handler.answer(
            request_id, self._served, prepared.inputs, prepared.settings, stream=request.stream
        )


class _Handler(ChatCompletionHandler):
    """Puts one answer into OpenAI's format: transformers' handler, with the exact text of `generate` and a report of
    plug-ins."""

    def __init__(
        self,
        manager: ModelManager,
        state: GenerationState,
        model: RequestModel,
        stops: Sequence[str],
        done: Callable[[], None],
    ) -> None:
        super().__init__(manager, state)
        self._stops = stops
        self._text = AnswerText(stops)
        self._request_model = model
        self._done = done
        self._streamed = ""  # the decoded text, including stop texts and blanks

    async def answer(
        self, request_id: str, served: ServedModel, inputs: Mapping[str, Any], settings: Any, *, stream: bool
    ) -> Response:
        """Answer, streamed or whole."""
        model: Any = self._request_model
        words: Any = _Words(served.loaded.processor)
        self._decode = words.decode
        arguments = (request_id, model, words, served.name, dict(inputs), settings)
        # The same for all requests, so that they take turns on its single thread.
        manager = self.generation_state.get_manager(served.name)
        if not stream:
            return await self._non_streaming(*arguments, manager)
        response = self._streaming(*arguments, manager)
        response.body_iterator = self._events(response.body_iterator)
        return response

    async def _events(self, pieces: Any) -> AsyncIterator[str]:
        async for piece in pieces:
            if (failure := self._request_model.failure) is not None:
                self._done()
                # As transformers writes it, a sentence with a quotation mark would not be JSON.
                yield self.chunk_to_sse(json.dumps(error_document(status_of(failure), str(failure))))
                return
            yield piece
        yield self.chunk_to_sse("[DONE]")

    def _build_completion(self, request_id: str, content: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        completion = super()._build_completion(request_id, answer_text(content, self._stops), *args, **kwargs)
        completion["usage"]["qkedit"] = self._request_model.reported()
        return completion

    def _build_chunk_sse(self, request_id: str = "", content: str | None = None, *args: Any, **kwargs: Any) -> str:
        if (usage := kwargs.pop("usage", None)) is None:
            if content is not None:
                self._streamed += content
                if not (content := self._text.feed(content)):
                    return ""
            return super()._build_chunk_sse(request_id, content, *args, **kwargs)
        # The last one.
        self._done()
        held = self._text.feed(self._never_streamed()) + self._text.end()
        before = super()._build_chunk_sse(request_id, held, model=kwargs["model"]) if held else ""
        kwargs["usage"] = CompletionUsage.model_validate(
            {**usage.model_dump(), "qkedit": self._request_model.reported()}
        )
        return before + super()._build_chunk_sse(request_id, content, *args, **kwargs)

    def _never_streamed(self) -> str:
        """Return the end of the whole answer that was not streamed: the partial character at its end."""
        if self._request_model.tokens is None:
            return ""
        whole: str = self._decode(self._request_model.tokens, skip_special_tokens=True)
        return whole.removeprefix(self._streamed) if whole.startswith(self._streamed) else ""


class _Words:
    """The parts of a processor that transformers' handler needs, without the template that some tokenizers have.

    See `RequestModel.config`. With the template, the handler would stream the prompt of a conversation that does not
    match it.
    """

    def __init__(self, processor: Any) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer = SimpleNamespace(_tokenizer=tokenizer.backend_tokenizer)
        self.decode = processor.decode


class _OneModel(ModelManager):
    """The models of transformers' application: there is only one, and it is not loaded by name."""

    def __init__(self, name: str) -> None:
        super().__init__(device="cpu")
        self._entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "qkedit"}

    def get_gen_models(  # type: ignore[override]  # theirs is cached
        self, cache_dir: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the list for `/v1/models`."""
        return [self._entry]

    def one_model(self, name: str) -> dict[str, Any]:
        """Return the document for `/v1/models/NAME`. Raises RequestError for another name."""
        if name != self._entry["id"]:
            raise RequestError(f"there is no model {name!r}", where="model", status=404, code="model_not_found")
        return self._entry


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
