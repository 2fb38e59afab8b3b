"""Test how log probabilities distinguish an edit, its base and other weights behind an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qkedit as api
from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, VerificationError
from qkedit.evaluation.served_edit import ServedEdit, located
from qkedit.runtime.generation import LoadedModel
from tests.cli.command import qkedit
from tests.evaluation.runs.openai_server import Sent, chat_completion, serve

__all__ = ["serve"]  # a fixture

DRAWN = np.random.default_rng(0)
BASE = -5 * DRAWN.random(200)
EDITED = BASE + 0.1 * DRAWN.standard_normal(200)


def judged(served: np.ndarray, edited: np.ndarray = EDITED) -> ServedEdit:
    return located("http://host/v1", "edited", BASE, edited, served)


def noise(size: float) -> np.ndarray:
    return size * np.random.default_rng(1).standard_normal(200)


@pytest.mark.parametrize(
    ("served", "verdict"),
    [
        (EDITED, "edit"),
        (BASE, "base"),
        (EDITED + noise(0.05), "edit"),
        (BASE + noise(0.05), "base"),
        ((BASE + EDITED) / 2, "neither"),
        (2 * EDITED - BASE, "neither"),
        (2 * BASE - EDITED, "neither"),
        (BASE + noise(3), "neither"),
        (EDITED + noise(0.5), "unclear"),
    ],
)
def test_the_verdict_follows_from_the_log_probabilities(served: np.ndarray, verdict: str) -> None:
    assert judged(served).verdict == verdict


def test_the_share_and_its_error_equal_a_fit_through_the_origin() -> None:
    served = BASE + 0.7 * (EDITED - BASE) + noise(0.02)
    found = judged(served)
    (share,), (squares,), _, _ = np.linalg.lstsq((EDITED - BASE)[:, None], served - BASE, rcond=None)
    assert found.share == pytest.approx(share)
    assert found.error == pytest.approx(np.sqrt(squares / 199 / ((EDITED - BASE) ** 2).sum()))


def test_each_verdict_has_its_exit_code() -> None:
    assert judged(EDITED).failure() is None
    of_base, unclear = judged(BASE).failure(), judged(EDITED + noise(0.5)).failure()
    assert isinstance(of_base, VerificationError)
    assert of_base.exit_code == 3
    assert unclear is not None
    assert unclear.exit_code == 1


def test_an_edit_without_effect_is_refused() -> None:
    with pytest.raises(QkeditError, match="does not change the log probabilities of any text"):
        judged(BASE, edited=BASE + 1e-6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edited") / "adapter"
    steer(SMALL_DEMO, out=out, layers="2-5", k=4, layout="lora", fsync=False)
    return out


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return api.load(SMALL_DEMO, dtype="float32")


def echoed(model: Any, body: dict[str, Any]) -> Sent:
    """Return an engine's reply to a request for the log probabilities of a prompt and one more token."""
    assert (body["echo"], body["max_tokens"]) == (True, 1)
    tokens = body["prompt"]
    ids = torch.tensor([tokens])
    with torch.no_grad():
        steps = model(input_ids=ids).logits[0].log_softmax(-1)
    values = [None] + [float(steps[place, token]) for place, token in enumerate(tokens[1:])] + [-0.5]
    logprobs = {"token_logprobs": values, "tokens": [""] * len(values), "text_offset": [], "top_logprobs": None}
    choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs}
    return 200, {"id": "1", "object": "text_completion", "created": 0, "model": "edited", "choices": [choice]}


def test_servers_of_the_edit_and_of_the_base_are_distinguished(serve: Any, demo: LoadedModel, directory: Path) -> None:
    pytest.importorskip("openai")
    server = serve(lambda body, number: echoed(demo.model, body))
    command = ("verify", directory, "--endpoint", server.url, "--device", "cpu")
    with api.edit(demo.model, str(directory)):
        result = qkedit(*command)
        assert api.verify_endpoint(directory, server.url).verdict == "edit"
    assert result.code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith("4 edited tensors as recorded")
    assert second.startswith(f"{server.url}/v1 serves the edit as edited: log probabilities of ")

    result = qkedit(*command, "--endpoint-model", "another", "--json")
    assert (result.code, result.document["status"]) == (3, "failed")
    assert result.document["served"]["verdict"] == "base"
    assert result.document["served"]["share"] == pytest.approx(0, abs=0.05)
    assert "serves the base as another" in result.document["error"]["what"]
    assert {body["model"] for body in server.bodies[12:]} == {"another"}


def test_unusable_servers_are_refused(serve: Any, directory: Path) -> None:
    pytest.importorskip("openai")
    server = serve(lambda body, number: chat_completion("Yes."))
    result = qkedit("verify", directory, "--endpoint", server.url, "--device", "cpu")
    assert (result.code, result.sentence()) == (
        1,
        f"{server.url}/v1: does not give the log probabilities of a prompt; serve with vLLM or SGLang.",
    )
    assert qkedit("verify", directory, "--endpoint", "host").code == 2
    alone = qkedit("verify", directory, "--endpoint-model", "edited")
    assert (alone.code, alone.sentence()) == (
        2,
        "--endpoint-model: no server is named; name it with --endpoint.",
    )
