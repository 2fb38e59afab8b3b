"""Test every family's edit as an adapter: in PEFT on the base, it equals the edited checkpoint."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import qkedit
from qkedit.checkpoint.query_modules import query_modules
from tests import tiny_configs
from tests.checkpoint.written import opened
from tests.families.built import Build, loaded, stored_tensors, understood
from tests.families.published import PUBLISHED, written

# peft 0.21 asks transformers 5.23 for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILIES = [*tiny_configs.FAMILIES, *tiny_configs.TEXT_MODELS]
INPUT = torch.arange(20, 32)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=INPUT, attention_mask=torch.ones_like(INPUT)).logits
    return found.masked_fill(found == torch.finfo(found.dtype).min, 0.0)  # Chameleon never generates image tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_the_base_equals_the_edited_checkpoint(family: str, build: Build, tmp_path: Path) -> None:
    base = build(family, True)
    options: dict[str, Any] = {"layers": "all", "heads": "1-3", "k": 2, "allow_text_only": True, "fsync": False}
    qkedit.steer(base.directory, out=tmp_path / "edited", **options)
    report = qkedit.steer(base.directory, out=tmp_path / "adapter", layout="lora", **options)
    stack, edited = understood(base.directory), stored_tensors(tmp_path / "edited")
    assert report.manifest.adapter is not None
    assert [layer.rank for layer in report.manifest.adapter] == [6] * len(stack.layers)

    before, expected = logits(base.model), logits(loaded(family, tmp_path / "edited"))
    model = pytest.importorskip("peft").PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "adapter")
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
            # PEFT multiplies in float32, with a rounding error in each sum.
            rounding = 8 * np.finfo(np.float32).eps * np.abs(wanted).max()
            np.testing.assert_allclose(weight[start : start + layer.head_size], wanted, rtol=0, atol=rounding)


@pytest.mark.parametrize("family", ["qwen3.5", "phi3", "molmo2", "qwen3-vl"])
def test_fused_gated_and_normed_forms_are_exported_and_applied(family: str, build: Build, tmp_path: Path) -> None:
    """Cover gated and fused rows, a tensor that the model class splits, and norms after the queries."""
    base = build(family, True).directory
    options: dict[str, Any] = {"layers": "all", "heads": "1-3", "k": 2, "allow_text_only": True, "fsync": False}
    qkedit.steer(base, out=tmp_path / "edited", **options)
    qkedit.export(tmp_path / "edited", base=base, out=tmp_path / "adapter", fsync=False)
    qkedit.apply(tmp_path / "adapter", base=base, out=tmp_path / "applied", fsync=False)
    assert qkedit.verify(tmp_path / "applied", base=base).mismatches == ()
    expected, found = stored_tensors(tmp_path / "edited"), stored_tensors(tmp_path / "applied")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-6 * np.abs(tensor).max())


@pytest.mark.parametrize("name", ["Qwen-VL", "InternVL2 on InternLM2"])
def test_an_adapter_of_a_fused_remote_class_has_zero_rows_for_keys_and_values(name: str, tmp_path: Path) -> None:
    published = PUBLISHED[name]
    base = written(tmp_path / "base", published)
    config = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoConfig": "never_run.Config"}}
    (base / "config.json").write_text(json.dumps(config))
    qkedit.steer(base, out=tmp_path / "edited", layers="1", heads="0,3", k=2, fsync=False)
    qkedit.steer(base, out=tmp_path / "adapter", layers="1", heads="0,3", k=2, layout="lora", fsync=False)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    module = f"base_model.model.{published.tensor.format(1)}"
    assert set(factors) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    change = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
    before, after = (
        load_file(directory / "model.safetensors")[f"{published.tensor.format(1)}.weight"]
        for directory in (base, tmp_path / "edited")
    )
    np.testing.assert_allclose(change, after - before, rtol=0, atol=1e-5)
    queries, keys, values = published.unpack(change)
    assert not keys.any()
    assert not values.any()
    assert [head for head in range(4) if queries[head].any()] == [0, 3]
