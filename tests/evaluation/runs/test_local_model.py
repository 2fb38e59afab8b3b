"""Test a model in this process: its prompts, its description, and its warnings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO
from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.runs.backend import EvalRequest
from qkedit.evaluation.runs.local_model import LocalModel, batches
from qkedit.images import read_image
from qkedit.plugins.core.report import PluginReport
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import load, respond
from tests.evaluation.runs.recording_model import questions, write_images


def ask(number: int = 0, image: Path | None = None, max_new_tokens: int = 3) -> EvalRequest:
    return EvalRequest(
        "pope.random", replace(questions()[0], id=str(number)), f"what is {number}", image, max_new_tokens
    )


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([4, 8]))), st.integers(1, 5))
def test_batches_hold_similar_requests_in_order(kinds: list[tuple[bool, int]], size: int) -> None:
    requests = [
        ask(number, Path("a.png") if shown else None, longest) for number, (shown, longest) in enumerate(kinds)
    ]
    made = list(batches(requests, size))
    assert [one for batch in made for one in batch] == requests
    for batch in made:
        assert 1 <= len(batch) <= size
        assert len({(one.image is None, one.max_new_tokens) for one in batch}) == 1
    for batch, following in pairwise(made):
        # No two neighbouring batches could be one.
        alike = (batch[0].image is None, batch[0].max_new_tokens) == (
            following[0].image is None,
            following[0].max_new_tokens,
        )
        assert len(batch) == size or not alike


def test_answers_equal_those_of_single_requests(tmp_path: Path) -> None:
    images = write_images(tmp_path)
    requests = [ask(0, images / "0.png"), ask(1, images / "0.png"), ask(2), ask(3, images / "2.png")]
    model = LocalModel(SMALL_DEMO, dtype="float32", batch_size=2)
    with model.session() as session:
        found = list(session.answers(requests))
        assert session.observed["dtype"] == "float32"
        assert session.observed["attention"] == "sdpa"
        assert "max_new_tokens" in session.observed["generation_config"]
        assert session.warnings == []
    demo = load(SMALL_DEMO, dtype="float32")
    for one, (asked, reply) in zip(requests, found, strict=True):
        shown = [] if one.image is None else [read_image(one.image)]
        assert asked is one
        assert reply.text == respond(demo, shown, one.prompt, max_new_tokens=3).text


def test_an_answer_of_the_maximum_length_has_the_finish_reason_length(tmp_path: Path) -> None:
    write_images(tmp_path)
    whole = respond(
        load(SMALL_DEMO, dtype="float32"), [read_image(tmp_path / "0.png")], "what is 0", max_new_tokens=64
    )
    assert not whole.is_cut
    with LocalModel(SMALL_DEMO, dtype="float32").session() as session:
        # The answer with its end token fits exactly; with one token less it does not.
        for length, reason in ((whole.tokens, "stop"), (whole.tokens - 1, "length")):
            ((_, reply),) = session.answers([ask(0, tmp_path / "0.png", length)])
            assert reply.finish_reason == reason


def test_the_identity_contains_dtype_device_and_plugins() -> None:
    identity = LocalModel(SMALL_DEMO).identity()
    assert LocalModel(SMALL_DEMO, batch_size=3, device="cpu").identity() == identity
    assert LocalModel(SMALL_DEMO, device="cuda:1").identity() == LocalModel(SMALL_DEMO, device="cuda:0").identity()
    for other in (
        LocalModel(SMALL_DEMO, device="cuda"),
        LocalModel(SMALL_DEMO, dtype="float32"),
        LocalModel(SMALL_DEMO, plugins=(PluginSettings("scr"),)),
    ):
        assert other.identity() != identity


def test_warnings_of_plugins_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qkedit.plugins.scr import plugin as scr

    number = iter(range(10))
    plain = scr.SCR.bind

    class Warning:
        def __init__(self, edit: Any) -> None:
            self._edit = edit

        def __getattr__(self, name: str) -> Any:
            return getattr(self._edit, name)

        def report(self) -> PluginReport:
            return replace(self._edit.report(), warnings=(f"little is left ({next(number)})",))

    def bind(self: scr.SCR, tasks: Any) -> Any:
        bound = plain(self, tasks)
        start = bound.start
        bound.start = lambda prefill: Warning(start(prefill))
        return bound

    monkeypatch.setattr(scr.SCR, "bind", bind)
    images = write_images(tmp_path)
    model = LocalModel(SMALL_DEMO, dtype="float32", batch_size=2, plugins=(PluginSettings("scr", {"layers": "0"}),))
    with model.session() as session:
        list(session.answers([ask(place, images / "0.png") for place in range(5)]))
        assert list(session.warnings) == ["scr warned at 3 batches, at the first: little is left (0)"]


def test_a_batch_too_large_for_the_device_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path)
    with LocalModel(SMALL_DEMO, dtype="float32", batch_size=2).session() as session:

        def generate(**inputs: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(session.loaded.model, "generate", generate)  # type: ignore[attr-defined]
        with pytest.raises(QkeditError, match="does not suffice for 2 prompts at once; lower --batch-size"):
            list(session.answers([ask(0, images / "0.png"), ask(1, images / "0.png")]))


def test_a_prompt_with_an_image_placeholder_is_refused_before_the_first_answer() -> None:
    held = replace(ask(7), prompt="<image>\nwhat is it")
    with (
        pytest.raises(UsageError, match=r"^pope\.random, question 7: the prompt holds '<image>'"),
        LocalModel(SMALL_DEMO).session() as session,
    ):
        next(session.answers([ask(0), held]))


def test_invalid_plugins_are_refused_before_the_first_question() -> None:
    with (
        pytest.raises(UsageError, match="layers"),
        LocalModel(SMALL_DEMO, plugins=(PluginSettings("scr", {"layers": "0-99"}),)).session(),
    ):
        pass


def test_edits_change_answers_and_identity(tmp_path: Path) -> None:
    """Answers equal those of the full output and differ from the base's; names of directories have no effect."""
    write_images(tmp_path, 1)
    steered: dict[str, Any] = {"layers": "2-5", "k": 6, "device": "cpu", "fsync": False}
    steer(SMALL_DEMO, out=tmp_path / "delta", layout="delta", **steered)
    steer(SMALL_DEMO, out=tmp_path / "full", **steered)
    edited = LocalModel(SMALL_DEMO, dtype="float32", edits=(str(tmp_path / "delta"),))

    def texts_of(model: LocalModel) -> list[str]:
        with model.session() as session:
            return [reply.text for _, reply in session.answers([ask(0, tmp_path / "0.png", 24)])]

    assert texts_of(edited) == texts_of(LocalModel(str(tmp_path / "full"), dtype="float32"))
    assert texts_of(edited) != texts_of(LocalModel(SMALL_DEMO, dtype="float32"))
    plain, identity = LocalModel(SMALL_DEMO, dtype="float32").identity(), edited.identity()
    assert "edits" not in plain
    assert identity == plain | {"edits": identity["edits"]}
    shutil.copytree(tmp_path / "delta", tmp_path / "copy")
    assert LocalModel(SMALL_DEMO, dtype="float32", edits=(str(tmp_path / "copy"),)).identity() == identity
    assert edited.settings["edited_with"] == [str(tmp_path / "delta")]
