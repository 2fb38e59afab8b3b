"""Test several servers of one model, and images that servers fetch themselves."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.runs.endpoint import Endpoint, ServedImages
from qkedit.evaluation.runs.endpoint_pool import EndpointPool
from qkedit.evaluation.runs.evaluate import evaluate
from qkedit.evaluation.runs.run_files import recorded_identity
from tests.evaluation.runs.openai_server import Sent, Server, chat_completion, serve
from tests.evaluation.runs.recording_model import questions, task, write_images

pytest.importorskip("openai")

__all__ = ["serve"]  # a fixture


def pool(*urls: str, **settings: Any) -> EndpointPool:
    return EndpointPool(tuple(Endpoint(url, **settings) for url in urls))


def prompts_at(*servers: Server) -> list[str]:
    return sorted(body["messages"][0]["content"][-1]["text"] for server in servers for body in server.bodies)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def unreachable() -> str:
    """Return a URL without a server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def test_questions_are_distributed_over_servers(serve: Any, images: Path, tmp_path: Path) -> None:
    together = threading.Barrier(6, timeout=20)  # three requests of each server must be in progress at once

    def reply(body: dict[str, Any], number: int) -> Sent:
        together.wait()
        return chat_completion("Yes.")

    here, there = serve(reply), serve(reply)
    servers = pool(here.url, there.url, concurrency=3)
    finished = evaluate(servers, [task()], images, tmp_path / "out")
    assert (len(here.bodies), len(there.bodies)) == (3, 3)
    assert prompts_at(here, there) == sorted(question.prompt for question in questions())
    assert finished.run["endpoint"] == sorted([f"{here.url}/v1", f"{there.url}/v1"])
    again = evaluate(pool(there.url, here.url), [task()], images, tmp_path / "out")  # in any order
    assert (again.asked, again.scores) == (0, finished.scores)
    here.close(), there.close()
    recorded = recorded_identity(tmp_path / "out")
    gone = pool(here.url, there.url, retries=0).or_as_recorded(recorded)
    assert evaluate(gone, [task()], images, tmp_path / "out").scores == finished.scores


def test_a_server_that_cannot_be_reached_is_left_out(
    serve: Any, unreachable: str, images: Path, tmp_path: Path
) -> None:
    here = serve(lambda body, number: chat_completion("Yes."))
    finished = evaluate(pool(unreachable, here.url, model="edited", retries=0), [task()], images, tmp_path / "out")
    assert prompts_at(here) == sorted(question.prompt for question in questions())
    (warning,) = [text for text in finished.warnings if "cannot be reached" in text]
    assert unreachable in warning
    assert "the other endpoints" in warning
    with pytest.raises(QkeditError, match="cannot be reached"):
        evaluate(
            pool(unreachable, unreachable + "/v2", model="edited", retries=0), [task()], images, tmp_path / "none"
        )
    assert pool(unreachable, here.url, retries=0).name == "edited"


def test_a_refusal_of_one_server_ends_the_run(serve: Any, images: Path, tmp_path: Path) -> None:
    here = serve(lambda body, number: chat_completion("Yes."))
    there = serve(lambda body, number: (400, {"error": {"message": "no images"}}))
    with pytest.raises(QkeditError, match="400: no images"):
        evaluate(pool(here.url, there.url), [task()], images, tmp_path / "out")


def test_invalid_pools_are_refused(serve: Any) -> None:
    here, there = (serve(lambda body, number: chat_completion("Yes.")) for _ in range(2))
    there.models = ["other"]
    with pytest.raises(UsageError, match=r"serves edited and .* serves other; name servers of one model"):
        pool(here.url, there.url).identity()
    with pytest.raises(UsageError, match="is named twice"):
        pool(here.url, here.url + "/v1/").identity()


def test_a_busy_server_gets_fewer_requests(serve: Any, images: Path, tmp_path: Path) -> None:
    server = serve(
        lambda body, number: chat_completion("Yes.") if number >= 4 else (503, {"error": {"message": "busy"}})
    )
    endpoint = Endpoint(server.url, model="edited", concurrency=4)
    with endpoint.lane() as lane:
        endpoint.answer(lane.client, _request(None))
        assert lane.concurrency.allowed == 2
    assert len(server.bodies) == 5


def test_a_server_receives_urls_of_images(serve: Any, images: Path, tmp_path: Path) -> None:
    server = serve(lambda body, number: chat_completion("Yes."))
    served = ServedImages(images, "file:///data/val 2014/".replace(" ", "%20"))
    finished = evaluate(Endpoint(server.url, images=served), [task()], images, tmp_path / "out")
    urls = {body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies}
    assert urls == {f"file:///data/val%202014/{number}.png" for number in range(3)}
    assert finished.run["image_urls"] == served.url
    with pytest.raises(UsageError, match="image_urls"):
        evaluate(Endpoint(server.url), [task()], images, tmp_path / "out")
    assert served.url_of(images / "a b" / "ü?.png") == "file:///data/val%202014/a%20b/%C3%BC%3F.png"


@pytest.mark.parametrize(
    "url",
    ["data", "file://host/data", "file:data", "ftp://host/x", "http://", "http://h/x?y", "http://[", "http://h/\n"],
)
def test_an_invalid_url_of_images_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a directory"):
        ServedImages(Path("images"), url)


def _request(image: Path | None) -> Any:
    from qkedit.evaluation.runs.backend import EvalRequest

    return EvalRequest("pope.random", questions()[1], "Is there a dog?", image, 16)
