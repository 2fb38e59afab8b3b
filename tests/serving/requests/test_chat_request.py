"""Test the parser of request bodies: accepted fields and the sentences of errors."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.serving.requests.chat_request import ChatRequest, Decoding, ImageUrl, Message, parse_chat_request
from qkedit.serving.requests.conversations import check_length, check_text_length
from qkedit.serving.requests.request_errors import RequestError
from qkedit.serving.requests.request_fields import LET_PASS, NOT_SERVED, SERVED
from qkedit.serving.served_model import generation_config

HELLO = [{"role": "user", "content": "hello"}]


def parsed(body: dict[str, Any]) -> ChatRequest:
    return parse_chat_request(body, model="it", plugins=("scr", "dscr"), images=2, placeholders=("<image>",))


def test_a_request_with_all_fields_is_parsed() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    body = {
        "model": "it",
        "messages": [
            {"role": "developer", "content": "be short"},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, image]},
            {"role": "assistant", "content": "b", "refusal": None, "tool_calls": [], "audio": None},
            {"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]},
        ],
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "temperature": 1,
        "top_p": 0.5,
        "seed": -3,
        "stop": "\n",
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "ann",
        "n": 1,
        "logit_bias": None,
        "tool_choice": "auto",
        "presence_penalty": 0.0,
        "qkedit": {"plugins": ["dscr", "scr"]},
    }
    assert parsed(body) == ChatRequest(
        messages=(
            Message("system", ("be short",)),
            Message("user", ("a", ImageUrl("data:image/png;base64,AA"))),
            Message("assistant", ("b",)),
            Message("user", (ImageUrl("data:x"),)),
        ),
        decoding=Decoding(max_tokens=7, temperature=1.0, top_p=0.5, seed=-3, stop=("\n",)),
        stream=True,
        plugins=("dscr", "scr"),
    )


def test_missing_fields_have_defaults() -> None:
    assert parsed({"messages": HELLO}) == ChatRequest(
        (Message("user", ("hello",)),), Decoding(), stream=False, plugins=("scr", "dscr")
    )
    assert parsed({"messages": HELLO, "qkedit": {"plugins": []}}).plugins == ()
    assert parsed({"messages": HELLO, "qkedit": {}, "max_tokens": None, "stop": None}).plugins == ("scr", "dscr")


@pytest.mark.parametrize(
    ("wrong", "where", "words"),
    [
        ({"model": "other"}, "model", "there is no model 'other'"),
        ({"model": None}, "model", "there is no model None"),
        ({"messages": None}, "messages", "not a list of messages"),
        ({"messages": "hello"}, "messages", "not a list of messages"),
        ({"messages": []}, "messages", "not a list of messages"),
        ({"messages": ["hello"]}, "messages[0]", "is not a message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'tool' is not a role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role", "is not a role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "neither text nor a list"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "neither text nor a list"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "not a supported part"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0]",
            "not a supported part",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}]},
            "messages[0].content[0]",
            "not a supported part",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
            "messages[0].content[0]",
            "not a supported part",
        ),
        ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "messages", "the last turn"),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}, *HELLO]},
            "messages[0].tool_calls",
            "not supported",
        ),
        ({"messages": [{"role": "user", "content": "an <image> here"}]}, "messages", "'<image>'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}] * 3}]},
            "messages",
            "3 images are more than this server's limit of 2",
        ),
        ({"max_tokens": 0}, "max_tokens", "not a whole number from 1"),
        ({"max_tokens": 2.5}, "max_tokens", "not a whole number"),
        ({"max_tokens": True}, "max_tokens", "not a whole number"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "not a whole number"),
        ({"temperature": -0.1}, "temperature", "not a number from 0 to 2"),
        ({"temperature": math.nan}, "temperature", "not a number"),
        ({"temperature": 10**400}, "temperature", "not a number"),
        ({"temperature": "0"}, "temperature", "not a number"),
        ({"top_p": 0}, "top_p", "not a number"),
        ({"top_p": math.inf}, "top_p", "not a number"),
        ({"seed": 1 << 64}, "seed", "not a whole number"),
        ({"stop": [""]}, "stop", "neither a text"),
        ({"stop": ["a"] * 5}, "stop", "neither a text"),
        ({"stop": {"a": 1}}, "stop", "neither a text"),
        ({"stream": "yes"}, "stream", "neither true nor false"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"generation_config": "{}"}, "generation_config", "unknown"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs", "unknown"),
        ({"qkedit": ["scr"]}, "qkedit", "not of the form"),
        ({"qkedit": {"plugin": []}}, "qkedit", "not of the form"),
        ({"qkedit": {"plugins": "scr"}}, "qkedit.plugins", "not a list of names"),
        ({"qkedit": {"plugins": [{"name": "scr"}]}}, "qkedit.plugins", "not a list of names"),
        ({"qkedit": {"plugins": ["other"]}}, "qkedit.plugins", "no plug-in 'other'; it has scr, dscr"),
        ({"qkedit": {"plugins": ["scr", "scr"]}}, "qkedit.plugins", "named twice"),
    ],
)
def test_invalid_fields_are_refused(wrong: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed({"model": "it", "messages": HELLO, **wrong})
    assert caught.value.where == where
    assert words in str(caught.value)
    assert caught.value.status == (404 if where == "model" else 400)
    error = caught.value.document()["error"]
    assert error["message"] == str(caught.value)
    assert error["param"] == where


@pytest.mark.parametrize(
    "field", ["model", "user", "x", "stop", "messages", "seed", "qkedit", "metadata", "response_format"]
)
def test_half_a_surrogate_pair_is_refused_anywhere(field: str) -> None:
    """JSON can encode half a surrogate pair; an answer that quotes it could not be sent."""
    for value in ("a\ud83d", ["\udc00"], {"\ud800": 1}, [{"a": [["\ud800b"]]}], [{"role": "\udfff"}]):
        with pytest.raises(RequestError, match=r"a text holds half a character \(U\+D[8-F]") as caught:
            parsed({"messages": HELLO, field: value})
        assert caught.value.where == field
    assert parsed({"messages": [{"role": "user", "content": "a\U0001f600b"}]}).texts == ("a\U0001f600b",)
    with pytest.raises(RequestError, match="body: a text holds half a character"):
        parsed({"messages": HELLO, "\ud83d": 1})


def test_every_field_of_openais_is_known() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Fields

    known = {*SERVED, *LET_PASS, *NOT_SERVED}
    assert set(Fields.__annotations__) <= known
    unchanged = {
        "verbosity": "high",
        "moderation": {"model": "any"},
        "prompt_cache_key": "a",
        "prompt_cache_options": {"ttl": 5},
        "prompt_cache_retention": "24h",
        "safety_identifier": "a",
        "service_tier": "flex",
        "metadata": {"a": "b"},
        "store": True,
        "user": "ann",
    }
    assert parsed({"messages": HELLO, **unchanged}) == parsed({"messages": HELLO})


def test_long_values_are_abbreviated_in_errors() -> None:
    long = "x" * 1_000_000
    plugins = {"plugins": [long]}
    for wrong in ({long: 1}, {"model": long}, {"messages": [{"role": long}]}, {"qkedit": plugins}):
        with pytest.raises(RequestError) as caught:
            parsed({"messages": HELLO, **wrong})
        assert len(str(caught.value)) < 300


def test_tiny_temperatures_are_greedy() -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, top_k=5)
    for temperature in (0.0, 1e-300, 1e-38, 9e-6):
        made = generation_config(own, Decoding(temperature=temperature, top_p=0.5), 4)
        assert (made.do_sample, made.temperature, made.top_p, made.top_k) == (False, None, None, None)
    made = generation_config(own, Decoding(temperature=1e-5), 4)
    assert (made.do_sample, made.temperature, made.top_p, made.top_k) == (True, 1e-5, 0.9, 5)
    assert generation_config(own, Decoding(), 4).temperature == 0.7
    # A model with a published temperature of 0 is greedy.
    own.temperature = 0.0
    assert not generation_config(own, Decoding(top_p=0.5), 4).do_sample
    assert not generation_config(own, Decoding(), 4).do_sample


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["model", "messages", "max_tokens", "temperature", "stop", "stream", "seed", "qkedit", "n", "x"]
)
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls"]),
        JSON | st.sampled_from(["user", "assistant"]) | st.lists(st.fixed_dictionaries({"type": JSON, "text": JSON})),
    ),
    max_size=3,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(FIELDS, JSON), MESSAGES)
def test_any_json_is_parsed_or_refused(body: dict[str, Any], messages: list[Any]) -> None:
    """No request body causes another kind of error."""
    for given_body in (body, {**body, "messages": messages}):
        with suppress(RequestError):
            assert parsed(json.loads(json.dumps(given_body))).messages


def test_the_answer_must_fit_the_context() -> None:
    assert check_length(10, None, 100) == 90
    assert check_length(10, None, 5000) == 1024
    assert check_length(10, 90, 100) == 90
    for prompt, asked, words in [
        (10, 91, "10 tokens of the prompt and 91 of the answer are more than the model's context of 100"),
        (100, None, "100 tokens of the prompt are more than the model's context of 100"),
        (200, 1, "200 tokens of the prompt are more"),
    ]:
        with pytest.raises(RequestError, match=words):
            check_length(prompt, asked, 100)
    check_text_length(["a" * 200, "b" * 100], 100, longest_token=3)
    with pytest.raises(RequestError, match="301 characters"):
        check_text_length(["a" * 200, "b" * 101], 100, longest_token=3)
