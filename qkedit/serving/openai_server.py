"""An OpenAI-compatible server of one model: the classes behind `transformers serve`, with plug-ins and limits.

    client ── Gate ── transformers' application ── ChatRoute ── transformers' handler ── Turn ── model

The application, the handler that puts answers into OpenAI's words, its streaming and the thread that all answers run
on are transformers'. What is added: bodies and images are checked before anything is done with them (`chat_request`,
`image_policy`), plug-ins act for one answer at a time (`Turn`), and every route but those named here is taken away,
among them the ones that load and unload models.

This file alone knows those classes. They are no documented interface: `serving_packages` checks the version, and
`tests/serving/test_transformers_classes.py` what is relied on here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi.responses import Response
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from qkedit.errors import QkeditError, first_line
from qkedit.serving.answer_text import AnswerText, answer_text
from qkedit.serving.chat_request import ChatRequest, Decoding, parse_chat_request
from qkedit.serving.conversations import placeholders
from qkedit.serving.gate import HEALTH, Gate, hung_up
from qkedit.serving.http_errors import answer_errors
from qkedit.serving.image_hosts import ImageHosts
from qkedit.serving.image_policy import ImagePolicy, from_data_url, is_data_url
from qkedit.serving.metrics import CONTENT_TYPE, Metrics
from qkedit.serving.request_errors import RequestError, error_document, status_of
from qkedit.serving.served_model import ServedModel
from qkedit.serving.turn import Turn

if TYPE_CHECKING:
    from PIL.Image import Image

CHAT, MODELS, METRICS = "/v1/chat/completions", "/v1/models", "/metrics"
PATHS = frozenset({CHAT, MODELS, METRICS, HEALTH})

logger = logging.getLogger("uvicorn.error")  # where the server's own failures are written


def build_application(served: ServedModel, policy: ImagePolicy, *, api_key: str | None = None) -> Gate:
    """Return the ASGI application that serves a model.

    Args:
        served: the model, loaded.
        policy: which images requests may bring, and how much of everything.
        api_key: what clients have to know; None for everybody.
    """
    metrics, state, manager = Metrics(), GenerationState(), _OneModel(served.name)
    chat: Any = ChatRoute(served, policy, metrics, manager, state)
    nobody: Any = None  # answers the routes that are taken away
    application = build_server(manager, chat, nobody, nobody, nobody, nobody, state)
    application.router.routes[:] = [
        route for route in application.router.routes if getattr(route, "path", None) in (CHAT, MODELS, HEALTH)
    ]
    application.add_api_route(METRICS, lambda: Response(metrics.text(), media_type=CONTENT_TYPE))
    application.add_api_route(f"{MODELS}/{{name:path}}", manager.one_model)
    answer_errors(application)
    return Gate(application, api_key=api_key, limits=policy.limits, metrics=metrics, paths=PATHS)


def run_server(application: Gate, listening: socket.socket, *, ready: Callable[[], None], log: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is being answered. Has to be called on the main thread.

    Args:
        application: from `build_application`.
        listening: bound to an address, and not listening yet.
        ready: called once requests are taken.
        log: write a line for every request.
    """
    # Its own log configuration would put requests on standard output, among the results.
    config = uvicorn.Config(application, log_config=None, access_log=log, server_header=False, ws="none")
    # Having stopped as it was told to, uvicorn raises the signal once more.
    with suppress(KeyboardInterrupt):
        _Server(config, ready).run(sockets=[listening])


class ChatRoute:
    """Answers `/v1/chat/completions`; transformers' application calls it its chat handler.

    Args:
        served: the model.
        policy: which images are taken.
        metrics: where answers are counted.
        manager, state: what transformers' handlers share.
    """

    def __init__(
        self, served: ServedModel, policy: ImagePolicy, metrics: Metrics, manager: ModelManager, state: GenerationState
    ) -> None:
        self._served = served
        self._policy = policy
        self._metrics = metrics
        self._manager = manager
        self._state = state
        self._placeholders = placeholders(served.loaded.processor)
        # One at a time: decoded images are large, and tokenizers are not made for several threads.
        self._preparing = ThreadPoolExecutor(1, "preparing")
        self._hosts = ImageHosts(policy.hosts, policy.limits)

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """Answer one request. Raises RequestError for one that cannot be served."""
        try:
            turn, decoding, stream, inputs, settings = await self._prepared(body)
        except QkeditError as error:
            failure = _without_frames(error)
        else:
            handler = _Handler(self._manager, self._state, turn, decoding.stop)
            return await handler.answer(request_id, self._served, inputs, settings, stream=stream)
        finally:
            # Prepared, it may have to wait for others, and what its images came in is large.
            body.clear()
        raise failure

    async def _prepared(self, body: dict[str, Any]) -> tuple[Turn, Decoding, bool, Mapping[str, Any], Any]:
        served = self._served
        request = parse_chat_request(
            body,
            model=served.name,
            plugins=served.switch.names,
            images=self._policy.limits.images,
            placeholders=self._placeholders,
        )
        fetched = await self._hosts.files(image.url for image in request.images if not is_data_url(image.url))
        inputs, settings = await asyncio.get_running_loop().run_in_executor(
            self._preparing, self._inputs, request, fetched
        )
        turn = served.turn(request, hung_up.get(), self._metrics)
        return turn, request.decoding, request.stream, inputs, settings

    def _inputs(self, request: ChatRequest, fetched: Mapping[str, bytes]) -> tuple[Mapping[str, Any], Any]:
        """Return the model's inputs for a request. Raises RequestError for one that does not become any."""
        images: list[Image] = []
        try:
            urls = [image.url for image in request.images]
            images = self._policy.decoded([from_data_url(url) if is_data_url(url) else fetched[url] for url in urls])
            return self._served.prepared(request, images)
        except QkeditError:
            raise
        except MemoryError as error:
            raise RequestError("the request does not fit into memory", remedy="send less", status=413) from error
        # A processor or a template may fail in any way on what clients send, and it is theirs to change it.
        except Exception as error:
            # As text: a record with the error itself would keep the images alive wherever records are kept.
            logger.warning("a request could not be prepared\n%s", traceback.format_exc().rstrip())
            raise RequestError(
                f"the model's processor fails on them ({type(error).__name__}: {first_line(error)})",
                where="messages",
                remedy="change them",
            ) from error
        finally:
            for image in images:
                image.close()


def _without_frames(error: QkeditError) -> QkeditError:
    """Return an error that keeps nothing alive: the frames it passed hold a request's images, until all of them go."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class _Handler(ChatCompletionHandler):
    """Puts one answer into OpenAI's words: transformers' handler, with the text as `generate` says it and plug-ins
    reported."""

    def __init__(self, manager: ModelManager, state: GenerationState, turn: Turn, stops: Sequence[str]) -> None:
        super().__init__(manager, state)
        self._stops = stops
        self._text = AnswerText(stops)
        self._turn = turn

    async def answer(
        self, request_id: str, served: ServedModel, inputs: Mapping[str, Any], settings: Any, *, stream: bool
    ) -> Response:
        """Answer, in pieces or in one."""
        model: Any = self._turn
        words: Any = _Words(served.loaded.processor)
        arguments = (request_id, model, words, served.name, dict(inputs), settings)
        # The same for all requests, so that they take turns on its one thread.
        manager = self.generation_state.get_manager(served.name)
        if not stream:
            return await self._non_streaming(*arguments, manager)
        response = self._streaming(*arguments, manager)
        response.body_iterator = self._events(response.body_iterator)
        return response

    async def _events(self, pieces: Any) -> AsyncIterator[str]:
        async for piece in pieces:
            if (failure := self._turn.failure) is not None:
                # As transformers writes it, a sentence with a quotation mark would be no JSON.
                yield self.chunk_to_sse(json.dumps(error_document(status_of(failure), str(failure))))
                return
            yield piece
        yield self.chunk_to_sse("[DONE]")

    def _build_completion(self, request_id: str, content: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        completion = super()._build_completion(request_id, answer_text(content, self._stops), *args, **kwargs)
        completion["usage"]["qkedit"] = self._turn.reported()
        return completion

    def _build_chunk_sse(self, request_id: str = "", content: str | None = None, *args: Any, **kwargs: Any) -> str:
        if (usage := kwargs.pop("usage", None)) is None:
            if content is not None and not (content := self._text.feed(content)):
                return ""
            return super()._build_chunk_sse(request_id, content, *args, **kwargs)
        # The last one.
        held = self._text.end()
        before = super()._build_chunk_sse(request_id, held, model=kwargs["model"]) if held else ""
        kwargs["usage"] = CompletionUsage.model_validate({**usage.model_dump(), "qkedit": self._turn.reported()})
        return before + super()._build_chunk_sse(request_id, content, *args, **kwargs)


class _Words:
    """All that transformers' handler needs of a processor, without the template that some tokenizers bring along.

    See `Turn.config`; there, the handler streamed the prompt where a conversation does not look as its template says.
    """

    def __init__(self, processor: Any) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer = SimpleNamespace(_tokenizer=tokenizer.backend_tokenizer)
        self.decode = processor.decode


class _OneModel(ModelManager):
    """What transformers' application asks for models: there is one, and it is not loaded by name."""

    def __init__(self, name: str) -> None:
        super().__init__(device="cpu")
        self._entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "qkedit"}

    def get_gen_models(  # type: ignore[override]  # theirs is cached
        self, cache_dir: str | None = None
    ) -> list[dict[str, Any]]:
        """Return what `/v1/models` lists."""
        return [self._entry]

    def one_model(self, name: str) -> dict[str, Any]:
        """Return what `/v1/models/NAME` says. Raises RequestError for another name."""
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
