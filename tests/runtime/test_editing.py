"""Test edits in memory against checkpoints on disk, and that the base is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qkedit
from qkedit import steer
from qkedit.demo import SMALL_DEMO
from qkedit.errors import CheckpointError, QkeditError, UnsupportedForm
from qkedit.runtime.editing import edit_as_stored as edited
from qkedit.runtime.editing import parameter_of
from qkedit.runtime.generation import load
from qkedit.spectral.suppression import Suppression
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.steer_options import SteerOptions
from tests import tiny_models
from tests.laboratory.small_eval_sets import demo_model, differing, weights_of


def plan(model: str = SMALL_DEMO, layers: str = "2,5", suppression: Suppression | None = None) -> SteerPlan:
    return plan_for(model, SteerOptions(layers, suppression=suppression or Suppression(), device="cpu"))


@pytest.mark.parametrize(
    "suppression",
    [
        Suppression(k=3, retain=0.5),
        Suppression(k=2, channel="symmetric"),
        Suppression(k=2, control="index", seed=3),
        Suppression(k=2, control="norm", seed=3),
    ],
    ids=lambda s: f"{s.channel} {s.control}",
)
def test_an_edit_in_memory_equals_the_checkpoint_of_steer(suppression: Suppression, tmp_path: Path) -> None:
    options = {"k": suppression.k, "retain": suppression.retain, "channel": suppression.channel}
    options |= {"control": suppression.control, "seed": suppression.seed, "device": "cpu", "fsync": False}
    steer(SMALL_DEMO, out=tmp_path / "edited", layers="2,5", **options)  # type: ignore[arg-type]
    written = load(str(tmp_path / "edited"), dtype="float32").model
    model = demo_model().model
    before = weights_of(model)
    with edited(model, plan(suppression=suppression)) as edit:
        assert differing(weights_of(written), model) == set()
        assert len(differing(before, model)) == 2
    assert [record.layer for record in edit.records] == [2, 5]
    assert differing(before, model) == set()


def test_models_in_the_stored_dtype_can_be_edited(tmp_path: Path) -> None:
    model = load(SMALL_DEMO, dtype="auto").model
    steer(SMALL_DEMO, out=tmp_path / "edited", layers="2,5", device="cpu", fsync=False)
    written = load(str(tmp_path / "edited"), dtype="auto").model
    with edited(model, plan()):
        assert differing(weights_of(written), model) == set()


def test_the_base_is_restored_after_an_error() -> None:
    model = demo_model().model
    before = weights_of(model)
    with pytest.raises(ZeroDivisionError), edited(model, plan()):
        len(differing(before, model)) / 0
    assert differing(before, model) == set()


def test_another_model_is_refused_and_unchanged() -> None:
    model = load(SMALL_DEMO, dtype="float32").model
    with torch.no_grad():
        model.get_decoder().layers[5].self_attn.q_proj.weight[0, 0] += 1
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="not the stored ones"), edited(model, plan()):
        pass
    assert differing(before, model) == set()  # layer 2 too, which came first


def test_edits_of_one_checkpoint_add_up_in_any_order() -> None:
    model = demo_model().model
    before = weights_of(model)
    name = next(name for name in before if name.endswith("layers.2.self_attn.q_proj.weight"))
    alone = []
    for layers, k in (("2", 3), ("2,5", 1)):
        with edited(model, plan(layers=layers, suppression=Suppression(k=k))):
            alone.append(weights_of(model))
    first, second = (
        edited(model, plan(layers=layers, suppression=Suppression(k=k))) for layers, k in (("2", 3), ("2,5", 1))
    )
    both = weights_of(model)
    exact = before[name].double() + sum(each[name].double() - before[name].double() for each in alone)
    assert torch.equal(both[name], exact.to(torch.bfloat16).float())  # rounded to the stored dtype of the demo
    first.disable()
    assert differing(alone[1], model) == set()
    second.disable()
    assert differing(before, model) == set()
    second.enable()
    first.enable()
    assert differing(both, model) == set()
    second.disable()
    assert differing(alone[0], model) == set()
    first.disable()
    assert differing(before, model) == set()


@pytest.mark.parametrize("family", ["qwen2-vl", "llava", "gemma3"])
def test_models_of_other_families_can_be_edited(family: str, tmp_path: Path) -> None:
    """Tensors of these families have different names in files and in memory."""
    directory = str(tiny_models.build(family, tmp_path / "base"))
    steer(directory, out=tmp_path / "edited", layers="1", k=1, device="cpu", fsync=False)
    from transformers import AutoModelForImageTextToText

    model, written = (
        AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32)
        for place in (directory, tmp_path / "edited")
    )
    suppression = Suppression(k=1)
    with edited(model, plan(directory, "1", suppression)):
        assert differing(weights_of(written), model) == set()


def test_a_tensor_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedForm, match="no parameter"):
        parameter_of(demo_model().model, "language_model.model.layers.2.self_attn.qkv.weight", 2)
    with pytest.raises(UnsupportedForm, match="no parameter"):
        parameter_of(demo_model().model, "language_model.model.layers.9.self_attn.q_proj.weight", 9)


@pytest.mark.parametrize(
    "family", ["qwen2-vl", "qwen3-vl", "qwen3.5", "internvl", "phi4-multimodal", "chameleon", "gemma3"]
)
def test_a_loaded_model_needs_no_directory(family: str, tmp_path: Path) -> None:
    """Cover separate, gated and fused projections, biases and norms: the bits equal those of `steer`'s files."""
    directory = str(tiny_models.build(family, tmp_path / "base"))
    steer(directory, out=tmp_path / "edited", layers="all", k=2, device="cpu", fsync=False)
    loader = tiny_models.model_class(family)
    model = loader.from_pretrained(directory, dtype=torch.bfloat16)
    written = weights_of(loader.from_pretrained(tmp_path / "edited", dtype=torch.bfloat16))
    before = weights_of(model)
    with qkedit.edit(model, layers="all", k=2, device="cpu") as edit:
        assert differing(written, model) == set()
        assert differing(before, model)
        with edit.disabled():
            assert not edit.enabled
            assert differing(before, model) == set()
        assert edit.enabled
        assert differing(written, model) == set()
    assert differing(before, model) == set()
    edit.enable()
    assert differing(written, model) == set()


def test_models_that_cannot_be_edited_are_refused_and_unchanged() -> None:
    model = demo_model().model
    before = weights_of(model)
    with pytest.raises(QkeditError, match="layer"):
        qkedit.edit(model, layers="99")
    assert differing(before, model) == set()
    with torch.device("meta"):
        hollow = type(model)(model.config)
    with pytest.raises(CheckpointError, match="offloaded"):
        qkedit.edit(hollow)


@pytest.mark.parametrize("layout", ["delta", "full", "lora"])
@pytest.mark.parametrize("family", ["qwen2-vl", "phi4-multimodal"])
def test_an_existing_edit_gives_the_weights_of_the_full_output(layout: Any, family: str, tmp_path: Path) -> None:
    """Cover separate and fused projections, in the stored dtype and rounded to it in a wider one."""
    if (family, layout) == ("phi4-multimodal", "lora"):
        pytest.skip("no adapter holds an edit of this fused projection in PEFT")
    directory = str(tiny_models.build(family, tmp_path / "base"))
    steer(directory, out=tmp_path / "edit", layout=layout, layers="all", k=2, device="cpu", fsync=False)
    qkedit.apply(tmp_path / "edit", base=directory, out=tmp_path / "full", fsync=False)
    loader = tiny_models.model_class(family)
    for dtype in (torch.bfloat16, torch.float32):
        model = loader.from_pretrained(directory, dtype=dtype)
        written = weights_of(loader.from_pretrained(tmp_path / "full", dtype=dtype))
        before = weights_of(model)
        with qkedit.edit(model, tmp_path / "edit") as edit:
            assert differing(written, model) == set()
            assert edit.records
        assert differing(before, model) == set()


def test_several_edits_equal_those_merged_by_apply(tmp_path: Path) -> None:
    places = [tmp_path / f"k{k}" for k in (1, 3)]
    for place, k in zip(places, (1, 3), strict=True):
        steer(SMALL_DEMO, out=place, layout="delta", layers="2,5", k=k, device="cpu", fsync=False)
    qkedit.apply(places, base=SMALL_DEMO, out=tmp_path / "full", fsync=False)
    model = demo_model().model
    before = weights_of(model)
    written = weights_of(load(str(tmp_path / "full"), dtype="float32").model)
    with qkedit.edit(model, places):
        assert differing(written, model) == set()
    with qkedit.edit(model, places[0]), qkedit.edit(model, places[1]):
        assert differing(written, model) == set()
    assert differing(before, model) == set()


def test_an_edit_of_another_base_is_refused_and_the_model_unchanged(tmp_path: Path) -> None:
    steer(SMALL_DEMO, out=tmp_path / "delta", layout="delta", layers="2,5", k=1, device="cpu", fsync=False)
    model = load(SMALL_DEMO, dtype="float32").model
    with torch.no_grad():
        model.get_decoder().layers[5].self_attn.q_proj.weight[0, 0] += 1
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="not the stored ones"):
        qkedit.edit(model, tmp_path / "delta")
    with pytest.raises(QkeditError, match="do not accept options"):
        qkedit.edit(model, tmp_path / "delta", k=2)
    assert differing(before, model) == set()
