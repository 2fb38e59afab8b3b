"""Test adapters in PEFT: switching, exchanging, stacking, merging and removing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.steering.manifest import read_manifest
from tests import tiny_models

peft = pytest.importorskip("peft")
pytestmark = [
    # peft 0.21 asks transformers 5.23 for it.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # A warning about a second adapter on one model, which is intended here.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

FAMILY = "llava"
INPUT = torch.arange(20, 32)[None]
FIRST: dict[str, Any] = {"layers": "0-1", "k": 2}
SECOND: dict[str, Any] = {"layers": "1,3", "heads": "0,2", "energy": 0.4}


@dataclass(frozen=True)
class Edited:
    """Return a base in float32, two edits of it as adapters, and the models of the full layout."""

    base: Any
    adapters: tuple[Path, Path]
    models: tuple[Any, Any]

    def fresh(self) -> Any:
        return copy.deepcopy(self.base)


def loaded(directory: Path, dtype: str = "float32") -> Any:
    return tiny_models.model_class(FAMILY).from_pretrained(directory, dtype=dtype).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT, attention_mask=torch.ones_like(INPUT)).logits


def close(one: Any, other: Any) -> bool:
    expected = logits(other)
    return bool((logits(one) - expected).abs().max() < 1e-5 * expected.abs().max())


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Edited:
    place = tmp_path_factory.mktemp("edited")
    base = tiny_models.build(FAMILY, place / "base", dtype="float32")
    for name, options in {"first": FIRST, "second": SECOND}.items():
        qkedit.steer(base, out=place / name, fsync=False, **options)
        qkedit.steer(base, out=place / f"{name}-adapter", layout="lora", fsync=False, **options)
    return Edited(
        loaded(base),
        (place / "first-adapter", place / "second-adapter"),
        (loaded(place / "first"), loaded(place / "second")),
    )


def test_adapters_can_be_exchanged_and_switched_off_in_a_loaded_model(edited: Edited) -> None:
    model = peft.PeftModel.from_pretrained(edited.fresh(), edited.adapters[0], adapter_name="first")
    model.load_adapter(edited.adapters[1], adapter_name="second")
    for name, expected in (("first", 0), ("second", 1), ("first", 0)):
        model.set_adapter(name)
        assert close(model, edited.models[expected])
        assert not close(model, edited.base)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(edited.base))
    assert not close(edited.models[0], edited.models[1])


def test_unload_restores_the_base_bit_for_bit(edited: Edited) -> None:
    model = peft.PeftModel.from_pretrained(edited.fresh(), edited.adapters[0]).unload()
    before, after = edited.base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_changes_only_the_named_modules(edited: Edited) -> None:
    model = peft.PeftModel.from_pretrained(edited.fresh(), edited.adapters[1])
    targets = [name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")]
    assert targets == [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (1, 3)]
    ranks = {layer.module: layer.rank for layer in read_manifest(edited.adapters[1]).adapter or ()}
    for name in targets:
        module = model.base_model.model.get_submodule(name)
        assert module.r["default"] == module.lora_A["default"].out_features == ranks[name]
        assert module.scaling["default"] == 1
    assert len(set(ranks.values())) == 2, "the test needs different ranks"


def test_an_ordinary_lora_can_be_stacked_on_an_edit(edited: Edited, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False
    )
    peft.get_peft_model(edited.fresh(), config).save_pretrained(tmp_path / "ordinary")
    expected = peft.PeftModel.from_pretrained(copy.deepcopy(edited.models[0]), tmp_path / "ordinary")

    model = peft.PeftModel.from_pretrained(edited.fresh(), edited.adapters[0], adapter_name="edit")
    model.load_adapter(tmp_path / "ordinary", adapter_name="ordinary")
    model.base_model.set_adapter(["edit", "ordinary"])
    assert close(model, expected)
    assert not close(model, edited.models[0])
    merged = model.merge_and_unload(adapter_names=["edit", "ordinary"])
    assert close(merged, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_weights_equal_the_edited_ones_within_one_rounding(dtype: str, tmp_path: Path) -> None:
    base = tiny_models.build(FAMILY, tmp_path / "base", dtype=dtype)
    qkedit.steer(base, out=tmp_path / "full", fsync=False, **FIRST)
    qkedit.steer(base, out=tmp_path / "adapter", layout="lora", fsync=False, **FIRST)
    expected = loaded(tmp_path / "full", dtype).state_dict()
    # In float32 the sum is exact enough; PEFT adds in the dtype of the weights, with one more rounding.
    wide = peft.PeftModel.from_pretrained(loaded(base, "float32"), tmp_path / "adapter").merge_and_unload()
    before = loaded(base, dtype).state_dict()
    kind = getattr(torch, dtype)
    for name, weights in wide.state_dict().items():
        stored = expected[name]
        finfo, single = torch.finfo(kind), torch.finfo(torch.float32)
        neighbours = (finfo.eps * stored.float().abs()).clamp_min(finfo.eps * finfo.tiny)
        # Where the change nearly cancels the weight, the roundings of float32 count beside a small sum.
        neighbours += 4 * single.eps * before[name].float().abs()
        assert ((weights.to(kind).float() - stored.float()).abs() <= neighbours).all(), name
    assert sum(not torch.equal(weights, expected[name]) for name, weights in before.items()) == 2
