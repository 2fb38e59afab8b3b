"""Test the benchmark of the server: its malformed requests are all invalid, and it prints its results."""

from __future__ import annotations

import json

import pytest

from qkedit.serving.requests.chat_request import parse_chat_request
from qkedit.serving.requests.conversations import check_text_length
from qkedit.serving.requests.image_policy import ImagePolicy, from_data_url
from qkedit.serving.requests.request_errors import RequestError
from tests.scripts.loading import SCRIPTS, load_script
from tests.serving.served_models import picture


def answer(body: bytes) -> None:
    """Prepare a request like a server, without running the model. Raises the server's errors."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError
    policy = ImagePolicy()
    request = parse_chat_request(document, model="it", plugins=("scr",), images=policy.limits.images)
    policy.decoded([from_data_url(image.url) for image in request.images])
    check_text_length(request.texts, context=32_768, longest_token=64)


def test_every_malformed_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))  # like Python for a script
    load_script("benchmark_serve")
    from benchmarking.malformed import malformed  # type: ignore[import-not-found]
    from benchmarking.servers import png, question  # type: ignore[import-not-found]

    image = png(picture(1))
    answer(json.dumps({"model": "it", "messages": question("what", image)}).encode())
    bodies = list(malformed(64, "it", image))
    assert len(set(bodies)) > 40
    for body in bodies:
        with pytest.raises((RequestError, ValueError, RecursionError)):
            answer(body)


def test_the_results_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))
    script = load_script("benchmark_serve")
    trial = {"count": 9, "seconds": 1.25, "outcome": {"status 413": 9}, "before": 5_000_000, "after": 6_000_000}
    timings = {
        "transformers serve": {"tokens": 7, "waited": {"median": 0.3}, "processor": {"median": 0.2}},
        "qkedit serve, scr": {"tokens": 6, "waited": {"median": 0.4}, "processor": {"median": 0.25}},
    }
    printed = script.markdown(
        {
            "cost": {"8": {"same_answer": True, "timings": timings}},
            "trials": {"bomb": [trial]},
            "killed": {"seconds_to_start_again": 3.0, "same_answer": True},
            "peak_bytes": 7_000_000,
            "bomb_bytes": 291_273,
            "same_answer_at_the_end": True,
        }
    )
    assert "Up to 8 tokens, the same answer by both servers without plug-ins" in printed
    assert "| qkedit serve, scr | 6 | 400.0 | 250.0 | +50.0 | 1.250 |" in printed
    assert "| bomb | 9 | status 413: 9 | 1.2 | 5.0 → 6.0 |" in printed
