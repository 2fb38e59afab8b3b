"""Every family's edit as an adapter: in PEFT on the base it is the edited checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qkedit
from qkedit.checkpoint.query_modules import query_modules
from tests import tiny_configs
from tests.checkpoint.written import opened
from tests.families.built import Build, loaded, stored_tensors, understood

peft = pytest.importorskip("peft")
# peft 0.21 asks transformers 5.23 for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILIES = [*tiny_configs.FAMILIES, *tiny_configs.TEXT_MODELS]
INPUT = torch.arange(20, 32)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=INPUT, attention_mask=torch.ones_like(INPUT)).logits
    return found.masked_fill(found == torch.finfo(found.dtype).min, 0.0)  # Chameleon speaks no image tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_base_is_the_edited_checkpoint(family: str, build: Build, tmp_path: Path) -> None:
    base = build(family, True)
    options: dict[str, Any] = {"layers": "all", "heads": "1-3", "k": 2, "allow_text_only": True, "fsync": False}
    qkedit.steer(base.directory, out=tmp_path / "edited", **options)
    report = qkedit.steer(base.directory, out=tmp_path / "adapter", layout="lora", **options)
    stack, edited = understood(base.directory), stored_tensors(tmp_path / "edited")
    assert report.manifest.adapter is not None
    assert [layer.rank for layer in report.manifest.adapter] == [6] * len(stack.layers)

    before, expected = logits(base.model), logits(loaded(family, tmp_path / "edited"))
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter")
    scale = expected.abs().max()
    assert (logits(model) - expected).abs().max() < 1e-5 * scale
    assert (before - expected).abs().max() > 1e-3 * scale

    merged = model.merge_and_unload()
    modules = query_modules(opened(base.directory), stack.layers)
    for layer in stack.layers:
        module, tensor = modules[layer.query.tensor.name], edited[layer.query.tensor.name]
        weight = merged.get_submodule(module.path).weight.detach().numpy()
        for start, stored in zip(module.starts, layer.query.starts, strict=True):
            wanted = tensor[stored : stored + layer.head_size]
            # PEFT multiplies in float32, where the sums that make a number are rounded one by one.
            rounding = 8 * np.finfo(np.float32).eps * np.abs(wanted).max()
            np.testing.assert_allclose(weight[start : start + layer.head_size], wanted, rtol=0, atol=rounding)
