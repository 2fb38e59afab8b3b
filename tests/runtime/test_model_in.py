"""Test that functions on a loaded model accept results of `qkedit.load` and models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.plugins.core.modules import model_in

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "edit": lambda model: qkedit.edit(model, layers=2, k=1),
    "attach": lambda model: qkedit.attach(model, qkedit.SCR()),
    "product_of": lambda model: qkedit.product_of(model, 2),
    "from_model": lambda model: qkedit.QKProduct.from_model(model, 2),
    "sink_of": qkedit.sink_of,
    "copying_heads": qkedit.copying_heads,
}


def test_both_kinds_of_models_give_equal_results() -> None:
    demo = qkedit.load(SMALL_DEMO)
    assert model_in(demo) is model_in(demo.model) is demo.model
    assert torch.equal(qkedit.product_of(demo, 2).S, qkedit.product_of(demo.model, 2).S)
    assert qkedit.sink_of(demo).sha256 == qkedit.sink_of(demo.model).sha256
    before = demo.model.get_decoder().layers[2].self_attn.q_proj.weight.clone()
    with qkedit.edit(demo, layers=2, k=1):
        assert not torch.equal(demo.model.get_decoder().layers[2].self_attn.q_proj.weight, before)
    assert torch.equal(demo.model.get_decoder().layers[2].self_attn.q_proj.weight, before)
    with qkedit.attach(demo, qkedit.SCR()):
        assert "forward" in vars(demo.model)
    assert "forward" not in vars(demo.model)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("given", [None, SMALL_DEMO, nn.Linear(2, 2)], ids=lambda given: type(given).__name__)
def test_other_objects_are_refused_in_one_sentence(name: str, given: object) -> None:
    with pytest.raises(qkedit.QkeditError, match=rf"^model: {type(given).__name__} is not a model of transformers;"):
        FUNCTIONS[name](given)
