"""Test the requests to an endpoint, and the treatment of its replies."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.records import Answer
from qkedit.evaluation.runs.backend import EvalRequest, Reply
from qkedit.evaluation.runs.endpoint import Endpoint, data_url
from qkedit.evaluation.runs.evaluate import evaluate
from qkedit.evaluation.runs.run_files import recorded_identity
from tests.evaluation.runs.openai_server import Sent, chat_completion, serve
from tests.evaluation.runs.recording_model import questions, task, write_images

pytest.importorskip("openai")

__all__ = ["serve"]  # a fixture


def asked_in(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][-1]["text"])


def reply_of(endpoint: Endpoint, request: EvalRequest) -> Reply:
    with endpoint.session() as session:
        ((_, reply),) = session.answers([request])
    return reply


def answer_of(endpoint: Endpoint, request: EvalRequest) -> str:
    return reply_of(endpoint, request).text


def ask(image: Path | None = None) -> EvalRequest:
    return EvalRequest("pope.random", questions()[1], "Is there a dog?", image, 16)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QKEDIT_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_the_request_has_model_prompt_image_and_key(serve: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda body, number: chat_completion(" No.\n"))
    monkeypatch.setenv("QKEDIT_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "of somebody else")
    assert answer_of(Endpoint(server.url), ask(images / "1.png")) == " No.\n"
    (body,) = server.bodies
    picture, text = body["messages"][0]["content"]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("edited", 16, 0)
    assert (body["messages"][0]["role"], text) == ("user", {"type": "text", "text": "Is there a dog?"})
    assert picture["type"] == "image_url"
    kind, _, encoded = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == (images / "1.png").read_bytes()
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert answer_of(Endpoint(server.url + "/v1/", model="other"), ask()) == " No.\n"
    assert server.bodies[1]["model"] == "other"
    assert [part["type"] for part in server.bodies[1]["messages"][0]["content"]] == ["text"]


def test_images_of_other_formats_are_sent_as_png(images: Path) -> None:
    image = Image.open(images / "1.png")
    for name, kind in {"a.jpg": "jpeg", "b.bmp": "png", "c.webp": "png"}.items():
        image.save(images / name, lossless=True)
        begin, _, encoded = data_url(images / name).partition(",")
        assert begin == f"data:image/{kind};base64"
        sent = Image.open(io.BytesIO(base64.b64decode(encoded)))
        if kind == "png":
            assert sent.convert("RGB").tobytes() == image.tobytes()
        else:
            assert base64.b64decode(encoded) == (images / name).read_bytes()
    Image.fromarray(np.full((4, 4), 32_896, np.uint16)).save(images / "e.png")  # servers read it differently
    encoded = data_url(images / "e.png").partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((0, 0)) == (128, 128, 128)
    (images / "d.txt").write_text("no picture")
    with pytest.raises(QkeditError, match=r"d\.txt: is not an image"):
        data_url(images / "d.txt")


def test_answers_in_any_order_are_stored_with_their_questions(serve: Any, images: Path, tmp_path: Path) -> None:
    """Requests run at once, a finished run is scored again, and another model of the server is refused."""
    together = threading.Barrier(3, timeout=20)

    def reply(body: dict[str, Any], number: int) -> Sent:
        together.wait()
        return chat_completion("No." if asked_in(body) in (questions()[1].prompt, questions()[2].prompt) else "Yes.")

    server = serve(reply)
    endpoint = Endpoint(server.url, concurrency=3)
    finished = evaluate(endpoint, [task()], images, tmp_path / "out")
    assert server.most_at_once == 3
    assert {name: finished.scores[0].counts[name] for name in ("tp", "fp", "tn", "fn")} == {
        "tp": 2,
        "fp": 2,
        "tn": 1,
        "fn": 1,
    }
    assert finished.run["endpoint"] == f"{server.url}/v1"
    assert (finished.run["model"], finished.run["endpoint_model"], finished.run["concurrency"]) == (
        "edited",
        "edited",
        3,
    )
    assert "no hash" in finished.warnings[0]
    again = evaluate(endpoint, [task()], images, tmp_path / "out")
    assert len(server.bodies) == 6
    assert again.scores == finished.scores
    with pytest.raises(UsageError, match='endpoint_model was "edited" and is "base"'):
        evaluate(Endpoint(server.url, model="base"), [task()], images, tmp_path / "out")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_temporary_errors_are_retried(serve: Any, status: int) -> None:
    server = serve(
        lambda body, number: chat_completion("Yes.") if number == 3 else (status, {"error": {"message": "busy"}})
    )
    assert answer_of(Endpoint(server.url, retries=3), ask()) == "Yes."
    server.bodies.clear()
    with pytest.raises(
        QkeditError, match=rf"/v1: refused the request \({status}: .*busy.*\); run again when the server works"
    ):
        answer_of(Endpoint(server.url, retries=2), ask())
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, r"refused the request \(400: .*too many images.*\); correct what its message names"),
        (404, r"refused the request \(404: .*too many images"),
        (401, r"refused the key \(401: .*too many images.*\); set QKEDIT_API_KEY to a key that the server accepts"),
        (403, r"refused the key \(403"),
        (422, r"refused the request \(422"),
    ],
)
def test_permanent_errors_are_reported_without_a_retry(serve: Any, status: int, words: str) -> None:
    server = serve(lambda body, number: (status, {"error": {"message": "too many\nimages", "type": "x"}}))
    with pytest.raises(QkeditError, match=words) as caught:
        answer_of(Endpoint(server.url), ask())
    assert "\n" not in str(caught.value)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>welcome</html>",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [{"text": "x"}]},
        [],
        b"{",
        "text",
        b'{"choices": ' + b"[" * 5_000,
    ],  # nested too deep for the JSON parser
)
def test_invalid_chat_completions_are_refused(serve: Any, answer: Any) -> None:
    server = serve(lambda body, number: (200, answer))
    with pytest.raises(QkeditError, match="not in OpenAI's protocol"):
        answer_of(Endpoint(server.url), ask())


@pytest.mark.parametrize(
    ("content", "reason", "reply"),
    [
        (None, "length", Reply("", "length")),  # a reasoning model without tokens left for its answer
        ("", "stop", Reply("", "stop")),
        ("Yes, there", "length", Reply("Yes, there", "length")),
        ("Yes.", None, Reply("Yes.", "stop")),
        ("Yes.", 7, Reply("Yes.", "stop")),
        ([], "stop", Reply("", "stop")),
        ([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s."}], "stop", Reply("Yes.", "stop")),
    ],
)
def test_answers_have_text_and_finish_reason(serve: Any, content: Any, reason: Any, reply: Reply) -> None:
    server = serve(lambda body, number: chat_completion(content, reason))
    assert reply_of(Endpoint(server.url), ask()) == reply


@pytest.mark.parametrize("content", [7, {"text": "Yes."}, ["Yes."], [{"type": "image"}], [{"type": "text"}], True])
def test_an_answer_that_is_not_text_does_not_end_the_run(
    serve: Any, images: Path, tmp_path: Path, content: Any
) -> None:
    contents: list[Any] = ["No.", content]
    server = serve(lambda body, number: chat_completion(contents[min(number, 1)]))
    for _ in range(2):
        with pytest.raises(QkeditError, match="not in OpenAI's protocol"):
            evaluate(Endpoint(server.url, concurrency=1), [task()], images, tmp_path / "out")
    contents[1] = "No."
    assert evaluate(Endpoint(server.url), [task()], images, tmp_path / "out").asked == 5


def test_empty_and_cut_answers_are_counted_with_a_warning(serve: Any, images: Path, tmp_path: Path) -> None:
    answers = [
        chat_completion(None, "length"),
        chat_completion(""),
        chat_completion("Yes, but", "length"),
        *[chat_completion("No.")] * 3,
    ]
    server = serve(lambda body, number: answers[number])
    finished = evaluate(Endpoint(server.url, concurrency=1), [task()], images, tmp_path / "out")
    again = evaluate(Endpoint(server.url), [task()], images, tmp_path / "out")
    for run in (finished, again):
        (score,) = run.scores
        assert (score.counts["empty"], score.counts["cut"]) == (2, 2)
        assert score.warnings[0].startswith("2 of 6 answers are empty")
        assert score.warnings[1].startswith("2 of 6 answers were cut off")


@pytest.mark.parametrize(
    ("reason", "is_cut"),
    [
        *((reason, False) for reason in ("stop", "STOP", "eos_token", "end_turn", "tool_calls", None, "")),
        *(
            (reason, True)
            for reason in ("length", "content_filter", "error", "SAFETY", "insufficient_system_resource")
        ),
        ({"type": "length", "length": 16}, True),
    ],
)
def test_any_finish_reason_but_stop_counts_as_cut(reason: Any, is_cut: bool) -> None:
    assert Answer("1", "Yes", fields={"finish_reason": reason}).is_cut == is_cut
    assert not Answer("1", "Yes").is_cut


def test_a_server_that_sends_single_bytes_times_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes at intervals prevent the library's own timeout."""
    from qkedit.evaluation.runs import bounded_client

    clock = iter(range(0, 10_000, 400))
    monkeypatch.setattr(bounded_client.time, "monotonic", lambda: next(clock))
    server = serve(lambda body, number: chat_completion("a" * 2**18))
    with pytest.raises(QkeditError, match="did not answer within 600 s"):
        answer_of(Endpoint(server.url, model="edited", retries=0), ask())


def test_a_redirect_is_followed_without_reading_its_body(serve: Any) -> None:
    """A redirect is refused; a hostile one could fill the memory by its body."""
    there = serve(lambda body, number: chat_completion("Yes."))
    here = serve(lambda body, number: (307, "a" * 2**20))
    here.sends = {"Location": f"{there.url}/v1/chat/completions"}
    assert answer_of(Endpoint(here.url, model="edited"), ask()) == "Yes."
    here.sends = {"Location": f"{here.url}/v1/chat/completions"}
    with pytest.raises(QkeditError, match=r"refused the request \(307"):
        answer_of(Endpoint(here.url, model="edited"), ask())
    assert len(here.bodies) == 1 + 6


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_response_is_refused(
    serve: Any, monkeypatch: pytest.MonkeyPatch, status: int, packed: bool
) -> None:
    from qkedit.evaluation.runs import bounded_client

    monkeypatch.setattr(bounded_client, "LARGEST_RESPONSE", 2**20)
    server = serve(
        lambda body, number: chat_completion("a" * 2**20) if status == 200 else (status, {"error": "a" * 2**20})
    )
    server.packs = packed
    with pytest.raises(QkeditError, match=r"sent more than 1 MB in one response"):
        answer_of(Endpoint(server.url), ask())
    assert len(server.bodies) == 1
    monkeypatch.setattr(bounded_client, "LARGEST_RESPONSE", 2**21)
    if status == 200:
        with pytest.raises(QkeditError, match="returned an answer of 1048576 characters"):
            answer_of(Endpoint(server.url), ask())


def test_a_finished_run_is_scored_again_without_its_server(serve: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server = serve(lambda body, number: chat_completion("No."))
    finished = evaluate(Endpoint(server.url), [task()], images, out)
    server.models = ["base"]  # a server that runs has precedence over the record
    with pytest.raises(UsageError, match='endpoint_model was "edited" and is "base"'):
        evaluate(Endpoint(server.url).or_as_recorded(recorded_identity(out)), [task()], images, out)
    server.close()
    gone = Endpoint(server.url).or_as_recorded(recorded_identity(out))
    again = evaluate(gone, [task()], images, out)
    assert (again.asked, again.scores, again.run) == (0, finished.scores, finished.run)
    assert Endpoint(server.url + "/other").or_as_recorded(recorded_identity(out)).model is None
    assert Endpoint(server.url).or_as_recorded(recorded_identity(tmp_path)).model is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"identity": 7}', "[" * 100_000])
def test_a_broken_record_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert recorded_identity(tmp_path) == {}


def test_a_run_ends_at_a_signal_while_its_server_is_silent(serve: Any, images: Path, tmp_path: Path) -> None:
    """Run in new processes: threads that wait for an answer must not delay the interpreter's exit."""
    asked, release = threading.Semaphore(0), threading.Event()

    def reply(body: dict[str, Any], number: int) -> Sent:
        asked.release()
        release.wait(120)
        return chat_completion("late")

    server = serve(reply)
    rows = [{"id": "1", "image": "0.png", "question": "Is it?", "truth": "yes"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = []
    for number in (signal.SIGINT, signal.SIGTERM):
        words = ["eval", "--endpoint", server.url, "-b", "custom", "--questions", str(tmp_path / "questions.jsonl")]
        words += ["--images", str(images), "--out", str(tmp_path / number.name)]
        # These tests may run as a background job, which ignores SIGINT.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heard}; from qkedit.cli.app import run; run()"
        started.append((number, subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE)))
    assert all(asked.acquire(timeout=60) for _ in started)
    for number, process in started:
        process.send_signal(number)
    try:
        for _, process in started:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130
            assert (
                errors.decode()
                == "error: interrupted; run the same command to go on; the finished answers are kept.\n"
            )
    finally:
        release.set()
        for _, process in started:
            process.kill()


def test_an_unreachable_server_is_an_error() -> None:
    with pytest.raises(QkeditError, match=r"http://127\.0\.0\.1:9/v1: cannot be reached \(.*\); start the server"):
        answer_of(Endpoint("http://127.0.0.1:9", model="x", retries=0), ask())


def test_a_late_answer_is_an_error(serve: Any) -> None:
    wait = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Sent:
        wait.wait(20)
        return chat_completion("late")

    server = serve(reply)
    with pytest.raises(QkeditError, match=r"did not answer within 0\.05 s"):
        answer_of(Endpoint(server.url, model="edited", retries=0, timeout=0.05), ask())
    wait.set()


def test_the_model_is_named_or_the_only_one_of_the_server(serve: Any) -> None:
    server = serve(lambda body, number: chat_completion("x"))
    server.models = ["base", "edited"]
    with pytest.raises(UsageError, match="serves 2 models; choose --endpoint-model base or edited"):
        answer_of(Endpoint(server.url), ask())
    server.models = []
    with pytest.raises(QkeditError, match="serves no model; name one with --endpoint-model"):
        answer_of(Endpoint(server.url), ask())
    assert answer_of(Endpoint(server.url, model="edited"), ask()) == "x"


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://host/v1", "http://", "", "file:///etc"),
        *("http://[::1", "http://host:abc/v1", "http://host:99999/v1", "http://host\n/v1", "http://host/\x1b"),
    ],
)
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a web address"):
        answer_of(Endpoint(url), ask())


@pytest.mark.parametrize("url", ["http://host/v1?key=secret", "http://host/v1#secret"])
def test_a_url_with_a_query_or_fragment_is_refused(url: str) -> None:
    with pytest.raises(
        UsageError, match=r"--endpoint: has more after its path; leave out what follows /v1\."
    ) as caught:
        answer_of(Endpoint(url), ask())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["secret\n", "sec\nret", " secret", "sécret", "\x1bsecret"])
def test_an_invalid_key_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_API_KEY", key)
    with pytest.raises(UsageError, match="QKEDIT_API_KEY: has a blank at its end, a line break or") as caught:
        answer_of(Endpoint("http://127.0.0.1:9"), ask())
    assert "ret" not in str(caught.value).partition("; ")[0]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "foo://host"), ("HTTP_PROXY", "http://[::1"), ("SSL_CERT_FILE", "no such file")],
)
def test_an_invalid_proxy_in_the_environment_is_an_error(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (variable, variable.lower()):
        monkeypatch.setenv(name, value)
    with pytest.raises(QkeditError, match=r"cannot be prepared \(.+\); correct the variables of proxies"):
        answer_of(Endpoint("http://192.0.2.1:9", model="edited"), ask())


def test_a_password_in_the_url_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="QKEDIT_API_KEY") as caught:
        answer_of(Endpoint("http://me:secret@127.0.0.1:9/v1"), ask())
    assert "secret" not in str(caught.value)


def test_answers_in_progress_at_an_error_are_kept(serve: Any, images: Path, tmp_path: Path) -> None:
    """One question fails while three others are answered; those answers are kept and not requested again."""
    together = threading.Barrier(4, timeout=20)
    prompts = [question.prompt for question in questions()]

    def reply(body: dict[str, Any], number: int) -> Sent:
        if number < 4:
            together.wait()
        return (400, {"error": {"message": "no"}}) if asked_in(body) == prompts[0] else chat_completion("Yes.")

    server = serve(reply)
    with pytest.raises(QkeditError, match="400"):
        evaluate(Endpoint(server.url, concurrency=4), [task()], images, tmp_path / "out")
    answered = {asked_in(body) for body in server.bodies} - {prompts[0]}
    assert len(answered) >= 3
    healthy = serve(lambda body, number: chat_completion("Yes."))
    record = tmp_path / "out" / "run.json"
    record.write_text(record.read_text().replace(server.url, healthy.url))
    evaluate(Endpoint(healthy.url), [task()], images, tmp_path / "out")
    assert sorted(map(asked_in, healthy.bodies)) == sorted(set(prompts) - answered)
