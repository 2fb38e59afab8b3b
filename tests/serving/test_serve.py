"""Test `qkedit serve` in a separate process with OpenAI's client over loopback."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch
from openai import OpenAI
from PIL import Image

from qkedit.plugins.dscr.plugin import DSCR
from qkedit.plugins.scr.plugin import SCR
from qkedit.plugins.transformers.attach import attach
from qkedit.runtime.generation import LoadedModel, respond
from tests.serving.conftest import KEY
from tests.serving.served_models import TEMPLATE, picture
from tests.serving.server_process import Server, ask, plugins, question, streamed

PROMPT = "what is there in the image"


def test_model_and_plugins_are_listed(server: Server, client: OpenAI, depth: Path) -> None:
    assert server.said["model"] == "tiny"
    assert server.said["plugins"] == [
        {"name": "scr", "options": {"layers": "0-1"}},
        {"name": "dscr", "options": {"depth": str(depth)}},
    ]
    template = TEMPLATE.replace("IMAGE", "<image>")
    record = {"source": "processor", "sha256": hashlib.sha256(template.encode()).hexdigest(), "form": "parts"}
    assert server.said["chat_template"] == record
    assert ask(client, question(PROMPT, picture(3)), max_tokens=1).usage.qkedit["chat_template"] == record
    assert urlsplit(server.url).hostname == "127.0.0.1"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health") as answer:  # without the key
        assert json.load(answer) == {"status": "ok"}


def test_answers_equal_those_of_generate_with_the_plugins_of_the_request(
    client: OpenAI, local: LoadedModel, depth: Path
) -> None:
    scr, dscr = SCR(layers="0-1"), DSCR(depth=depth)
    selections: dict[tuple[str, ...], list[Any]] = {
        (): [],
        ("scr",): [scr],
        ("dscr",): [dscr],
        ("scr", "dscr"): [scr, dscr],
    }
    texts = set()
    for names, attached in selections.items():
        expected = respond(local, [picture(3)], PROMPT, attached, max_new_tokens=12)
        answer = ask(client, question(PROMPT, picture(3)), extra_body=plugins(*names))
        assert answer.choices[0].message.content == expected.text
        assert answer.usage.completion_tokens == expected.tokens
        assert [plugin["name"] for plugin in answer.usage.qkedit["plugins"]] == list(names)
        report = answer.usage.qkedit["report"] or {"plugins": {}, "seconds": {}}
        assert report["plugins"].keys() == report["seconds"].keys() == set(names)
        if names:
            assert expected.report is not None
            assert report["cells"] == expected.report.cells == 36
        pieces, last = streamed(client, question(PROMPT, picture(3)), extra_body=plugins(*names))
        assert "".join(pieces) == expected.text
        assert len(pieces) > 3
        assert last.usage.completion_tokens == expected.tokens
        assert last.usage.qkedit["plugins"] == answer.usage.qkedit["plugins"]
        assert (last.usage.qkedit["report"] or {}).get("plugins") == (answer.usage.qkedit["report"] or {}).get(
            "plugins"
        )
        texts.add(expected.text)
    assert len(texts) == 4  # so that a switch without effect would fail the test
    default = ask(client, question(PROMPT, picture(3)))
    assert [plugin["name"] for plugin in default.usage.qkedit["plugins"]] == ["scr", "dscr"]


def generated(local: LoadedModel, turns: list[dict[str, Any]], images: list[Any], **settings: Any) -> str:
    """Return the result of transformers for a conversation in its own format."""
    text = local.processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = local.processor(text=text, images=images, return_tensors="pt")
    tokens = local.model.generate(**inputs, max_new_tokens=12, **settings)
    return local.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def turn(role: str, *parts: str | None) -> dict[str, Any]:
    """Return a turn in the format of transformers; None is an image."""
    return {
        "role": role,
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


def test_a_chat_may_have_several_turns_with_several_images(client: OpenAI, local: LoadedModel) -> None:
    first, second = question(PROMPT, picture(1), picture(2)), question("and here", picture(4))
    given = {"role": "assistant", "content": "a cup", "refusal": None, "tool_calls": []}
    system = {"role": "system", "content": "describe it"}
    answer = ask(client, [system, *first, given, *second], extra_body=plugins("scr"))
    turns = [
        turn("system", "describe it"),
        turn("user", None, None, PROMPT),
        turn("assistant", "a cup"),
        turn("user", None, "and here"),
    ]
    with attach(local.model, SCR(layers="0-1")):
        expected = generated(local, turns, [picture(1), picture(2), picture(4)])
    assert answer.choices[0].message.content == expected
    assert answer.usage.qkedit["report"]["images"] == 3


def test_sampling_depends_on_the_seed(client: OpenAI, local: LoadedModel) -> None:
    messages, settings = question(PROMPT, picture(1)), {"temperature": 1.5, "top_p": 0.9}
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(generated(local, [turn("user", None, PROMPT)], [picture(1)], do_sample=True, **settings))
        answer = ask(client, messages, seed=seed, extra_body=plugins(), **settings)
        assert answer.choices[0].message.content == answers[-1]
        assert "".join(streamed(client, messages, seed=seed, extra_body=plugins(), **settings)[0]) == answers[-1]
    assert answers[0] != answers[1]
    greedy = [ask(client, messages, **settings).choices[0].message.content for settings in ({"temperature": 0}, {})]
    assert greedy[0] == greedy[1]


def test_answers_end_at_stop_texts(client: OpenAI) -> None:
    messages = question(PROMPT, picture(3))
    whole = ask(client, messages).choices[0]
    assert whole.finish_reason == "length"
    words = whole.message.content.split(" ")
    place = next(number for number in range(2, len(words)) if words[number] not in words[:number])
    for stop in (words[place], f"{words[place - 1]} {words[place][:2]}"):
        expected = whole.message.content.split(stop)[0].strip()
        answer = ask(client, messages, stop=["never said", stop])
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
        assert answer.usage.completion_tokens == place + 1
        pieces, last = streamed(client, messages, stop=stop)
        assert ("".join(pieces), last.choices[0].finish_reason) == (expected, "stop")


def test_concurrent_requests_do_not_affect_each_other(client: OpenAI) -> None:
    """Requests differ in images, plug-ins and streaming, and some have no image."""
    choices = [("scr",), (), ("dscr",), ("scr", "dscr")]

    def answer(number: int) -> tuple[str, list[str]]:
        images = [] if number % 8 == 7 else [picture(number)]
        settings = {"extra_body": plugins(*choices[number % 4]), "max_tokens": 4}
        if number % 3:
            answer = ask(client, question(f"what {PROMPT}", *images), **settings)
            return answer.choices[0].message.content, sorted((answer.usage.qkedit["report"] or {}).get("plugins", []))
        pieces, last = streamed(client, question(f"what {PROMPT}", *images), **settings)
        return "".join(pieces), sorted((last.usage.qkedit["report"] or {}).get("plugins", []))

    # Every eighth request has no image, so there are 32 images.
    one_by_one = [answer(number) for number in range(36)]
    with ThreadPoolExecutor(36) as threads:
        assert list(threads.map(answer, range(36))) == one_by_one
    assert len({text for text, _ in one_by_one}) > 16
    for number, (_, acted) in enumerate(one_by_one):
        assert acted == ([] if number % 8 == 7 else sorted(choices[number % 4]))


def test_invalid_requests_are_one_sentence_and_the_server_goes_on(client: OpenAI) -> None:
    image = question(PROMPT, picture(1))[0]["content"][0]
    text = {"type": "text", "text": "it"}

    def with_image(url: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]

    broken = image["image_url"]["url"][: 22 + 2000]  # in the middle of the file
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (404, "there is no model", {"model": "other"}),
        (400, "messages: is not a list", {"messages": []}),
        (400, "this server has no plug-in 'other'", {"extra_body": plugins("other")}),
        (400, "the field is unknown", {"extra_body": {"generation_config": "{}"}}),
        (400, "n: the field is not supported", {"n": 2}),
        (400, "placeholder for an image", {"messages": question("<image> what")}),
        (400, "neither a data URL nor", {"messages": with_image("/etc/passwd")}),
        (400, "neither a data URL nor", {"messages": with_image("file:///etc/passwd")}),
        (400, "does not fetch images", {"messages": with_image("http://169.254.169.254/latest")}),
        (400, "not valid base64", {"messages": with_image("data:image/png;base64,***")}),
        (400, "is not an image", {"messages": with_image("data:image/png;base64,AAAA")}),
        (400, "image 1: cannot be read", {"messages": with_image(broken)}),
        (413, "pixels", {"messages": question("it", *[Image.new("RGB", (900, 600))] * 2)}),
        (413, "the body is longer", {"messages": question("it" * (1 << 20))}),
        (
            400,
            "4 images are more than this server's limit of 3",
            {"messages": [{"role": "user", "content": [image] * 4}]},
        ),
        (400, "more than the model's context of 1024", {"messages": question("is " * 2000)}),
        (400, "and 2000 of the answer", {"max_tokens": 2000}),
        (400, "more than the model's context of 1024 tokens", {"messages": question("x" * 100_000)}),
        # There is depth for one image only; this is the error of the plug-in.
        (400, "1 depth maps were given", {"messages": question("it", picture(1), picture(2))}),
    ]
    for status, words, wrong in cases:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(
                **{"model": "tiny", "messages": question(PROMPT, picture(1)), "max_tokens": 4, **wrong}  # type: ignore[call-overload]
            )
        error = caught.value
        assert error.status_code == status, error.message
        sentence = error.response.json()["error"]["message"]
        assert words in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
    with pytest.raises(openai.APIError, match="1 depth maps were given"):
        streamed(client, question("it", picture(1), picture(2)))
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="wrong"), question(PROMPT))
    assert ask(client, question(PROMPT, picture(1))).choices[0].message.content


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_stops_the_answer(server: Server, client: OpenAI, stream: bool) -> None:
    before = server.settled(KEY)
    body = {"messages": question(PROMPT, picture(1)), "max_tokens": 900, "stream": stream}
    content = json.dumps(body).encode()
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: it\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {KEY}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        if stream:
            assert connection.recv(1000)
        else:
            time.sleep(0.3)
    after = server.settled(KEY)
    tokens = after["qkedit_answer_tokens_total"] - before["qkedit_answer_tokens_total"]
    assert tokens < 850
    assert ask(client, question(PROMPT, picture(1))).choices[0].message.content


def test_metrics_count_requests_tokens_and_seconds(server: Server, client: OpenAI) -> None:
    before = server.settled(KEY)
    answers = [ask(client, question(PROMPT, picture(number)), extra_body=plugins("scr")) for number in range(2)]
    answers.append(ask(client, question(PROMPT), extra_body=plugins("scr")))  # without an image no plug-in acts
    after = server.settled(KEY)

    def difference(name: str) -> float:
        return after[name] - before[name]

    assert difference('qkedit_requests_total{path="/v1/chat/completions",status="200"}') == 3
    assert difference("qkedit_prompt_tokens_total") == sum(answer.usage.prompt_tokens for answer in answers)
    assert difference("qkedit_answer_tokens_total") == sum(answer.usage.completion_tokens for answer in answers)
    assert difference('qkedit_plugin_prefills_total{plugin="scr"}') == 2
    assert difference('qkedit_plugin_prefills_total{plugin="dscr"}') == 0
    spent = sum(answer.usage.qkedit["report"]["seconds"]["scr"] for answer in answers[:2])
    assert difference('qkedit_plugin_seconds_total{plugin="scr"}') == pytest.approx(spent)
    assert difference("qkedit_generation_seconds_sum") > spent


def test_the_log_has_no_secrets_and_no_tracebacks(server: Server) -> None:
    log = server.log.read_text()
    assert "POST /v1/chat/completions" in log
    assert KEY not in log
    assert not re.search("Traceback|Exception", log)


def test_a_stopping_server_finishes_its_answers(server: Server, client: OpenAI) -> None:
    """This test runs last, since it stops the server."""
    messages = question(PROMPT, picture(2))
    expected = ask(client, messages, max_tokens=60).choices[0].message.content
    chunks = ask(client, messages, max_tokens=60, stream=True)
    said = next(chunks).choices[0].delta.content or ""
    waiting: list[str] = []
    other = threading.Thread(
        target=lambda: waiting.append(ask(client, messages, max_tokens=60).choices[0].message.content)
    )
    other.start()
    time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    assert said + "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    other.join()
    assert waiting == [expected]
    assert server.process.wait(20) == 0
    with pytest.raises(openai.APIConnectionError):
        ask(client, messages)
