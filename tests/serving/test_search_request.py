"""Test requests answered by the search of a plug-in (OPERA): streamed at the end, cut at stop texts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from qkedit.errors import QkeditError
from qkedit.plugins.settings import PluginSettings
from qkedit.runtime.generation import LoadedModel, Prompt, batch_inputs
from qkedit.serving.http.metrics import Metrics
from qkedit.serving.plugin_switch import PluginSwitch
from qkedit.serving.request_model import RequestModel
from tests.serving.served_models import picture, qwen

OPTIONS = {"beams": 2, "candidates": 3, "scale": 500.0, "threshold": 2, "early": 1}


def request_model(loaded: LoadedModel, *plugins: str, stops: tuple[str, ...] = ()) -> RequestModel:
    switch = PluginSwitch(loaded.model, [PluginSettings("opera", OPTIONS)])
    return RequestModel(loaded, switch, plugins, stops=stops, seed=1, gone=threading.Event(), metrics=Metrics())


class Stream:
    """A streamer that stores its input."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        """Store tokens."""
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        """Record the end."""
        self.given.append([])


def test_an_answer_is_streamed_at_once_and_ends_with_its_stop_text() -> None:
    loaded = qwen()
    inputs = batch_inputs(loaded, [Prompt("it <3> <image> <4> it", (picture(1),))])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 10_000, "pad_token_id": 0}
    searching, stream = request_model(loaded, "opera"), Stream()
    tokens = searching.generate(**inputs, **settings, streamer=stream)
    answer = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    assert stream.given == [inputs["input_ids"][0].tolist(), *[[token] for token in answer], []]
    assert searching.report is not None
    assert searching.report.plugins.keys() == {"opera"}
    plain = request_model(loaded).generate(**inputs, **settings)
    assert torch.equal(plain, loaded.model.generate(**inputs, **settings))

    said = loaded.processor.tokenizer.decode(answer[:2]).split()[-1]
    stopped = request_model(loaded, "opera", stops=(said,)).generate(**inputs, **settings)
    found = stopped[0, inputs["input_ids"].shape[1] :].tolist()
    assert said in loaded.processor.tokenizer.decode(found)
    assert said not in loaded.processor.tokenizer.decode(found[:-1])


def test_sampling_is_refused() -> None:
    loaded = qwen()
    inputs = batch_inputs(loaded, [Prompt("it it")])
    with pytest.raises(QkeditError, match="its search does not sample; ask for temperature 0"):
        request_model(loaded, "opera").generate(**inputs, max_new_tokens=2, do_sample=True)
