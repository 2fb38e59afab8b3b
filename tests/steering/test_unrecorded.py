"""Test models without a record, unexplained tensors, and checkpoints converted for MLX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.errors import UnsupportedForm
from qkedit.inspection.spectra import inspect
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions
from qkedit.steering.verify import verify
from tests import tiny_models
from tests.steering.checkpoints import CONFIG, HEAD_SIZE, HIDDEN, query_name, tensors_of, weights, write


def of_type(directory: Path, model_type: str, text_type: str) -> Path:
    config = {**CONFIG, "model_type": model_type, "text_config": {**CONFIG["text_config"], "model_type": text_type}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        (("novel_vl", "novel_text"), "novel_vl is not a known family: understood as plain projections without norms"),
        (("novel_vl", "llama"), "novel_vl is not a known family: understood as Llama (no norm)"),
        (("llava", "novel_text"), "llava is not a known family: understood as plain projections without norms"),
        (("llava", "llama"), None),
        (("llama", "llama"), None),
    ],
)
def test_the_assumption_about_an_unrecorded_model_is_always_reported(
    tmp_path: Path, types: tuple[str, str], sentence: str | None
) -> None:
    base = of_type(write(tmp_path / "base", weights()), *types)
    plan = plan_for(str(base), SteerOptions(layers="1"))
    report = steer(base, out=tmp_path / "out", layers="1", k=2, fsync=False)
    said = [plan.as_dict()["understood_as"], report.manifest.understood_as]
    if sentence is None:
        assert said == [None, None]
        assert not any("known family" in warning for warning in (*report.warnings, *inspect(plan).warnings))
    else:
        assert all(text.startswith(sentence) for text in said)
        assert said[0] in report.warnings
        assert said[0] in inspect(plan).warnings


@pytest.mark.parametrize("model_type", ["\ud800", "a\udcffb", "long " * 50_000])
def test_an_unusual_model_type_gives_a_valid_manifest(tmp_path: Path, model_type: str) -> None:
    base = of_type(write(tmp_path / "base", weights()), model_type, "llama")
    steer(base, out=tmp_path / "out", layers="1", k=2, fsync=False)
    assert verify(tmp_path / "out", base=str(base)).mismatches == ()
    assert len((tmp_path / "out" / "qkedit.json").read_bytes()) < 20_000


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("norm_q.weight", (HEAD_SIZE,), "normalised"),
        ("q_ln.weight", (HEAD_SIZE,), "normalised"),
        ("k_layer_norm.weight", (HEAD_SIZE,), "normalised"),
        ("query_layernorm.weight", (HEAD_SIZE,), "normalised"),
        ("k_sconv.weight", (HIDDEN, 1, 4), "may change the query-key product"),
        ("logit_scale", (1,), "may change the query-key product"),
        ("q_proj.gain", (HEAD_SIZE,), "may change the query-key product"),
    ],
)
@pytest.mark.parametrize("text_type", ["llama", "novel_text"])
def test_unexplained_tensors_of_an_attention_block_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], sentence: str, text_type: str
) -> None:
    tensor = query_name(1).replace("q_proj.weight", name)
    base = of_type(write(tmp_path / "base", weights() | {tensor: torch.ones(shape)}), "llava", text_type)
    with pytest.raises(UnsupportedForm, match=sentence) as caught:
        plan_for(str(base), SteerOptions(layers="0"))
    assert caught.value.where == f"tensor {tensor}"


@pytest.mark.parametrize("name", ["q_norm.weight", "k_layernorm.bias", "norm_k.weight"])
def test_a_norm_next_to_the_attention_block_is_refused(tmp_path: Path, name: str) -> None:
    tensor = query_name(1).replace("self_attn.q_proj.weight", name)
    base = of_type(write(tmp_path / "base", weights() | {tensor: torch.ones(HEAD_SIZE)}), "llava", "llama")
    with pytest.raises(UnsupportedForm, match=f"{name.partition('.')[0]} is next to the attention block") as caught:
        plan_for(str(base), SteerOptions(layers="0"))
    assert caught.value.where.startswith("layer 1, ")


def test_tensors_that_do_not_affect_the_product_are_accepted(tmp_path: Path) -> None:
    names = ("o_proj.weight", "v_proj.weight", "v_proj.bias", "rotary_emb.inv_freq", "sinks", "k_scale", "masked_bias")
    others = {query_name(1).replace("q_proj.weight", name): torch.ones(HEAD_SIZE) for name in names}
    base = write(tmp_path / "base", weights() | others)
    assert len(plan_for(str(base), SteerOptions(layers="all")).layers) == 3


def converted(source: Path, target: Path, change: Any) -> Path:
    """Write a checkpoint again in MLX's form, with its tensors changed by `change`."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
            continue
        with safe_open(file, "pt") as shard:
            tensors = {name: change(name, shard.get_tensor(name)) for name in shard.keys()}  # noqa: SIM118
        save_file(tensors, target / file.name, {"format": "mlx"})
    return target


def as_mlx(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("conv1d.weight") and tensor.ndim == 3:
        return tensor.transpose(1, 2).contiguous()
    return tensor + 1 if name.endswith(("q_norm.weight", "k_norm.weight")) else tensor


def unchanged(_: str, tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize(("family", "change"), [("qwen3.5", as_mlx), ("gemma3", unchanged)])
def test_a_checkpoint_converted_for_mlx_is_edited_like_its_source(tmp_path: Path, family: str, change: Any) -> None:
    """mlx-lm adds 1 to the gains of Qwen3.5 at conversion, and to those of Gemma 3 at run time."""
    source = tiny_models.build(family, tmp_path / "source", dtype="float32")
    mlx = converted(source, tmp_path / "mlx", change)
    reports = [steer(base, out=base.with_suffix(".out"), layers="all", k=2, fsync=False) for base in (source, mlx)]
    ours, theirs = (tensors_of(base.with_suffix(".out")) for base in (source, mlx))
    before = tensors_of(source)
    for record in reports[0].manifest.tensors:
        name = record.name
        assert not torch.equal(ours[name], before[name])
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-6)


def test_unconverted_tensors_marked_as_mlx_are_refused(tmp_path: Path) -> None:
    source = tiny_models.build("qwen3.5", tmp_path / "source")
    with pytest.raises(UnsupportedForm, match="marked as MLX's, but this convolution was not converted"):
        plan_for(str(converted(source, tmp_path / "mlx", unchanged)), SteerOptions(layers="all"))
