"""Test the undocumented classes of `transformers serve` on which the adapter relies.

If one of these tests fails after an update of transformers, check `qkedit/serving/openai_server.py` before
`serving_packages` allows the new version.
"""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from openai.types.completion_usage import CompletionUsage
from transformers.cli.serving import utils
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState

from qkedit.errors import QkeditError
from qkedit.serving.serving_packages import LATEST, OLDEST, check_serving_packages, check_transformers_version


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_application_takes_its_handlers_in_this_order() -> None:
    assert parameters(build_server)[:7] == [
        "model_manager",
        "chat_handler",
        "completion_handler",
        "response_handler",
        "transcription_handler",
        "systemone_handler",
        "generation_state",
    ]


def test_routes_call_the_methods_that_the_adapter_replaces() -> None:
    from starlette.testclient import TestClient

    asked: list[Any] = []

    class Chat:
        async def handle_request(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
            asked.append((body, type(request_id)))
            return {}

    class Manager(ModelManager):
        def get_gen_models(self, cache_dir: str | None = None) -> Any:  # type: ignore[override]
            return ["the list"]

    nobody: Any = None
    chat: Any = Chat()
    application = build_server(Manager(device="cpu"), chat, nobody, nobody, nobody, nobody, GenerationState())
    assert isinstance(application, FastAPI)
    paths = {getattr(route, "path", None) for route in application.router.routes}
    assert {"/v1/chat/completions", "/v1/models", "/health"} < paths
    with TestClient(application) as client:
        assert client.post("/v1/chat/completions", json={"a": 1}).json() == {}
        assert asked == [({"a": 1}, str)]
        assert client.get("/v1/models").json() == {"object": "list", "data": ["the list"]}
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("method", ["_streaming", "_non_streaming"])
def test_the_handler_takes_prepared_inputs(method: str) -> None:
    names = parameters(getattr(ChatCompletionHandler, method))
    assert names[1:8] == ["request_id", "model", "processor", "model_id", "inputs", "gen_config", "gen_manager"]


def test_texts_of_answers_come_from_methods_that_can_be_overridden() -> None:
    """The adapter cuts stop texts and adds its report in these two methods."""

    class Words:
        """The part of a processor that the adapter passes on."""

        tokenizer = SimpleNamespace(_tokenizer=None)

        def decode(self, ids: Any, skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return f"{len(ids)} tokens"

    class Model:
        """The part of a model that `RequestModel` has."""

        config = SimpleNamespace(model_type=None)

        def generate(self, **arguments: Any) -> torch.Tensor:
            assert {"input_ids", "generation_config"} <= arguments.keys()
            if (streamer := arguments.get("streamer")) is not None:
                streamer.put(torch.zeros(1, 3))
                streamer.end()
            return torch.zeros(1, 5, dtype=torch.long)

    class Settings:
        max_new_tokens = 9

    calls: list[tuple[Any, Any]] = []

    class Handler(ChatCompletionHandler):
        def _build_completion(self, request_id: str, content: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
            calls.append((content, kwargs["usage"]))
            return super()._build_completion(request_id, content, *args, **kwargs)

        def _build_chunk_sse(self, request_id: str = "", content: str | None = None, *args: Any, **kwargs: Any) -> str:
            calls.append((content, kwargs.get("usage")))
            assert "model" in kwargs
            return super()._build_chunk_sse(request_id, content, *args, **kwargs)

    async def answered() -> tuple[Any, list[str]]:
        state = GenerationState()
        handler = Handler(ModelManager(device="cpu"), state)
        given: Any = ("id", Model(), Words(), "name", {"input_ids": torch.zeros(1, 3)}, Settings())
        whole = await handler._non_streaming(*given, state.get_manager("name"))
        stream = handler._streaming(*given, state.get_manager("name"))
        assert state.get_manager("name") is state.get_manager("name")  # one thread for all
        return whole, [str(chunk) async for chunk in stream.body_iterator]

    whole, chunks = asyncio.run(answered())
    assert b'"content":"2 tokens"' in whole.body
    content, usage = calls[0]
    assert (content, usage.prompt_tokens, usage.completion_tokens) == ("2 tokens", 3, 2)
    assert all(chunk.startswith("data: ") for chunk in chunks)
    # The first chunk has the role, the last one the finish reason and the usage.
    assert calls[1] == (None, None)
    assert calls[-1][1] is not None
    assert CompletionUsage.model_validate({**calls[-1][1].model_dump(), "qkedit": {"a": None}}).model_dump()["qkedit"]


def test_the_streamer_can_be_cancelled_and_reports_failures() -> None:
    assert {"put", "end", "cancel"} <= vars(utils.DirectStreamer).keys()
    assert "_StreamError(str(e))" in inspect.getsource(GenerateManager.generate_streaming)
    assert BaseHandler.chunk_to_sse("[DONE]") == "data: [DONE]\n\n"


def test_the_version_is_checked() -> None:
    check_serving_packages()
    for minor in (OLDEST, LATEST):
        check_transformers_version(f"{minor[0]}.{minor[1]}.7")
    for version in (f"{LATEST[0]}.{LATEST[1] + 1}.0", f"{OLDEST[0]}.{OLDEST[1] - 1}.2", "6.0.0.dev0"):
        with pytest.raises(
            QkeditError, match=rf"{version} is installed; install it with `pip install 'qkedit\[serve\]'`"
        ):
            check_transformers_version(version)
