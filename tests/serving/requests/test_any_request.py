"""Test the whole server in this process with unusual requests: an answer or a one-sentence error."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from qkedit.runtime.generation import LoadedModel
from qkedit.serving.limits import Limits
from qkedit.serving.openai_server import CHAT, build_application
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.requests import conversations, image_policy
from qkedit.serving.requests.image_policy import ImagePolicy
from qkedit.serving.requests.request_fields import LET_PASS, NOT_SERVED, SERVED
from qkedit.serving.served_model import ServedModel
from tests.serving.served_models import picture
from tests.serving.server_process import data_url, question

IMAGE = data_url(picture(1))
BODY: dict[str, Any] = {"model": "tiny", "messages": question("what is it", picture(1)), "max_tokens": 2}


@pytest.fixture(scope="module")
def client(local: LoadedModel) -> Iterator[TestClient]:
    served = ServedModel("tiny", local, PluginSwitch(local.model, ()))
    application = build_application(served, ImagePolicy(Limits(body=1 << 20, pixels=100_000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversations, "DEFAULT_ANSWER", 2)
        with TestClient(application, raise_server_exceptions=False, base_url="http://localhost") as made:  # type: ignore[arg-type]
            yield made


def answered(client: TestClient, body: bytes | dict[str, Any]) -> tuple[int, Any]:
    """Return the status, and the document or the last but one event of the stream."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        return answer.status_code, json.loads(events[-2] if events[-1] == "[DONE]" else events[-1])
    return answer.status_code, answer.json()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([1e-300, 5e-324, 1 << 64, 10**400, -0.0])
    | st.text(st.characters(codec=None), max_size=6)
    | st.sampled_from(["\ud83d", "\x00", "<image>", "</s>", "{{ 1 }}", "user", IMAGE])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KINDS = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
SIDES = st.sampled_from([(1, 1), (1, 200), (200, 1), (1, 201), (40_000, 1), (2, 2), (400, 300)])
PICTURES = st.builds(lambda kind, sides: data_url(Image.new(kind, sides)), KINDS, SIDES)
HEADS = st.sampled_from(
    ["data:image/png;base64,", "data:image/png,", "data:;base64,", "DATA:image/gif;BASE64, ", "http://", ""]
)
URLS = PICTURES | st.builds(
    lambda url, head, cut, noise: (head + url.partition(",")[2])[:cut] + noise,
    st.just(IMAGE),
    HEADS,
    st.integers(0, 9000),
    st.text(st.characters(codec=None), max_size=3),
)
PARTS = st.one_of(
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, URLS | JSON),
    st.builds(lambda text: {"type": "text", "text": text}, JSON),
    JSON,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "developer"]) | JSON, "content": st.lists(PARTS) | JSON}
)
OF_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGE, max_size=3) | JSON,
    "max_tokens": st.integers(-1, 3) | JSON,
    "temperature": st.floats(0, 2) | JSON,
    "top_p": st.floats(0, 1) | JSON,
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=5) | JSON,
    "stream": st.booleans() | JSON,
    "qkedit": st.fixed_dictionaries({"plugins": JSON}) | JSON,
}
FIELDS = sorted({*SERVED, *LET_PASS, *NOT_SERVED, "generation_config"})
CHANGES = st.lists(
    st.sampled_from(FIELDS).flatmap(lambda field: st.tuples(st.just(field), OF_FIELD.get(field, JSON))), max_size=3
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGES)
@example([("temperature", 1e-300), ("top_p", 0.1)])
@example([("temperature", 2), ("seed", 1 << 63), ("stream", True)])
@example([("user", "\ud83d"), ("stream", True)])
@example([("max_tokens", 10**400)])
@example(
    [
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": data_url(Image.new("1", (1, 40_000)))}]}],
        )
    ]
)
def test_any_field_is_accepted_or_refused_in_one_sentence(client: TestClient, changes: list[tuple[str, Any]]) -> None:
    status, document = answered(client, {**BODY, **dict(changes)})
    assert status < 500
    if "error" in document:
        assert document["error"]["type"] == "invalid_request_error"
        assert document["error"]["message"].endswith(".")
        assert len(document["error"]["message"].splitlines()) == 1
    else:
        assert status == 200


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_body_is_accepted_or_refused(client: TestClient, data: st.DataObject) -> None:
    body = bytearray(json.dumps({**BODY, "messages": question("what is it")}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert answered(client, bytes(body[: data.draw(st.integers(0, len(body)))]))[0] < 500


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"[]"]
)
def test_bodies_that_overflow_parsers_are_refused(client: TestClient, body: bytes) -> None:
    status, document = answered(client, body)
    assert (status, document["error"]["type"]) == (400, "invalid_request_error")


def test_a_valid_request_is_answered(client: TestClient) -> None:
    """Otherwise the tests above would be meaningless."""
    status, document = answered(client, BODY)
    assert (status, document["usage"]["completion_tokens"]) == (200, 2)
    assert answered(client, {**BODY, "stream": True})[1]["usage"]["completion_tokens"] == 2


def test_an_image_refused_by_the_processor_is_named(
    client: TestClient, local: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = local.processor.image_processor
    preprocess = pictures.preprocess

    def narrow_minded(images: Any, *arguments: Any, **settings: Any) -> Any:
        if any(image.width > 60 for image in images):
            raise ValueError("the image is too wide\nfor me")
        return preprocess(images, *arguments, **settings)

    monkeypatch.setattr(pictures, "preprocess", narrow_minded)
    messages = question("it", picture(1), picture(2, width=61))
    assert (
        "its processor does not accept image 2 of 61 × 48 pixels with size shortest_edge=48 "
        "(ValueError: the image is too wide)"
    ) in answered(client, {**BODY, "messages": messages})[1]["error"]["message"]


@pytest.mark.parametrize("stage", ["template", "processor", "decoding", "parsing"])
def test_a_failing_request_frees_its_images(
    client: TestClient, local: LoadedModel, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Memory must be freed without the garbage collector, which may not run for a long time."""
    seen: list[weakref.ref[Image.Image]] = []
    decode = image_policy.decode_image

    def decoded(*arguments: Any) -> Image.Image:
        image = decode(*arguments)
        seen.append(weakref.ref(image))
        return image

    def fails(*arguments: Any, **settings: Any) -> Any:
        raise KeyError("it is not there")

    monkeypatch.setattr(image_policy, "decode_image", decoded)
    if stage == "template":
        monkeypatch.setattr(local.processor, "apply_chat_template", fails)
    elif stage == "processor":
        monkeypatch.setattr(local.processor.image_processor, "preprocess", fails)
    broken = question("it", picture(1))[0]["content"] + (
        [{"type": "image_url", "image_url": {"url": IMAGE[:2000]}}] if stage == "decoding" else []
    )
    body = {**BODY, "messages": [{"role": "user", "content": broken}]}
    if stage == "parsing":
        body["max_tokens"] = 10**6  # too many tokens, as is known after the images are read
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            status, document = answered(client, body)
            assert (status, document["error"]["type"]) == (400, "invalid_request_error")
        assert len(seen) == 3
        assert [image() for image in seen] == [None] * 3
    finally:
        gc.enable()
