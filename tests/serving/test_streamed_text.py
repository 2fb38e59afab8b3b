"""Test that a stream and a whole answer have the same text for all tokenizations."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import GenerationState

from qkedit.serving.openai_server import _Handler


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per byte, like the fallback of large vocabularies."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class RequestModel:
    """A model that returns given tokens, with the interface of `RequestModel`."""

    config = SimpleNamespace(model_type=None)
    failure = None

    def __init__(self, ids: list[int]) -> None:
        self.ids = torch.tensor(ids, dtype=torch.long)
        self.tokens: Any = None

    def generate(self, *, input_ids: torch.Tensor, streamer: Any = None, **settings: Any) -> torch.Tensor:
        if streamer is not None:
            streamer.put(input_ids)
            for token in self.ids:
                streamer.put(token[None])
        self.tokens = self.ids
        if streamer is not None:
            streamer.end()
        return torch.cat([input_ids[0], self.ids])[None]

    def reported(self) -> dict[str, Any]:
        return {}


def text_and_releases(tokenizer: Any, ids: list[int], stops: list[str], *, stream: bool) -> tuple[str, int]:
    """Return the text of an answer, and the number of releases of its slot."""
    done: list[None] = []

    async def streamed_text() -> str:
        model: Any = RequestModel(ids)
        handler = _Handler(ModelManager(device="cpu"), STATE, model, stops, lambda: done.append(None))
        served: Any = SimpleNamespace(name="tiny", loaded=SimpleNamespace(processor=tokenizer))
        inputs = {"input_ids": torch.zeros(1, 3, dtype=torch.long)}
        response: Any = await handler.answer("id", served, inputs, SimpleNamespace(max_new_tokens=99), stream=stream)
        if not stream:
            return json.loads(response.body)["choices"][0]["message"]["content"]
        text = ""
        async for piece in response.body_iterator:
            for event in filter(None, piece.split("\n\n")):
                if event != "data: [DONE]":
                    text += json.loads(event[6:])["choices"][0]["delta"].get("content") or ""
        return text

    return asyncio.run(streamed_text()), len(done)


STATE = GenerationState()
PIECES = st.sampled_from(["a", " ", "é", "€", "😀", "e\u0301", "\n"])


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=8), st.integers(0, 3), st.lists(st.sampled_from(["a", "€", " é"]), max_size=2))
@example(["a", "€"], 1, [])
@example(["😀"], 3, [])
@example(["a", " ", "€"], 2, ["€"])
def test_an_answer_may_end_inside_a_character(
    bytewise: PreTrainedTokenizerFast, pieces: list[str], cut: int, stops: list[str]
) -> None:
    ids = bytewise.encode("".join(pieces), add_special_tokens=False)
    ids = ids[: max(0, len(ids) - cut)]
    whole, _ = text_and_releases(bytewise, ids, stops, stream=False)
    streamed, done = text_and_releases(bytewise, ids, stops, stream=True)
    assert streamed == whole
    assert done == 1
    if not stops and cut == 0:
        assert whole == "".join(pieces).strip()


def test_an_incomplete_character_is_sent_as_a_replacement(bytewise: PreTrainedTokenizerFast) -> None:
    ids = bytewise.encode("a €", add_special_tokens=False)[:-1]
    assert text_and_releases(bytewise, ids, [], stream=True)[0] == "a \ufffd"
