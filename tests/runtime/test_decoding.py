"""Test the conversion of requests' decoding settings to transformers' settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkedit.demo import SMALL_DEMO
from qkedit.runtime.generation import LoadedModel, load, request_inputs
from qkedit.serving.requests.chat_request import Decoding
from qkedit.serving.served_model import generation_config
from tests.serving.served_models import picture


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(SMALL_DEMO, dtype="float32")


def config(demo: LoadedModel, **own: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(**{**demo.model.generation_config.to_diff_dict(), **own})


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 9e-6])
def test_tiny_temperatures_are_greedy(demo: LoadedModel, temperature: float) -> None:
    asked = generation_config(config(demo), Decoding(temperature=temperature, top_p=0.9), 6)
    own = generation_config(config(demo, do_sample=True, temperature=temperature or 1e-9), Decoding(), 6)
    inputs = request_inputs(demo, [picture(1)], "is it red")
    greedy = demo.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for settings in (asked, own):
        assert not settings.do_sample
        assert torch.equal(demo.model.generate(**inputs, generation_config=settings), greedy)


def test_other_temperatures_sample(demo: LoadedModel) -> None:
    assert generation_config(config(demo), Decoding(temperature=1e-5), 6).do_sample
    assert generation_config(config(demo), Decoding(top_p=0.5), 6).do_sample
    assert not generation_config(config(demo), Decoding(), 6).do_sample
