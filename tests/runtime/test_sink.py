"""Test the sink of a loaded model against the model's own modules, and edits that protect it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.runtime.editing import edit_as_stored
from qkedit.runtime.generation import load
from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.runtime.sink import DISTANCES, sink_of
from qkedit.spectral.suppression import Suppression
from qkedit.steering.manifest import read_manifest
from qkedit.steering.plan import plan_for
from qkedit.steering.run import run_plan
from qkedit.steering.steer_options import OutputOptions, SteerOptions
from tests import tiny_models
from tests.laboratory.small_eval_sets import demo_model, differing, weights_of

LAYER = 1


def logits_of_unit_queries(model: Any, layer: int, token: int) -> Tensor:
    """Return the logits of every unit query (after its norm) at distances 1 to 512, `[H_kv, n, d_h]`."""
    decoder = model.get_decoder()
    attention = decoder.layers[layer].self_attn
    last = getattr(attention, "k_norm", attention.k_proj)
    seen = {}
    hooks = [
        last.register_forward_hook(lambda module, inputs, output: seen.update(keys=output)),
        decoder.layers[layer].register_forward_pre_hook(lambda module, inputs: seen.update(states=inputs[0])),
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([[token]]), attention_mask=torch.ones(1, 1, dtype=torch.long))
        for hook in hooks:
            hook.remove()
        places = torch.arange(DISTANCES + 1)[None]
        multimodal = "mrope_section" in str(model.config.get_text_config().to_dict())
        cos, sin = decoder.rotary_emb(seen["states"], places.expand(3, 1, -1) if multimodal else places)
    cos, sin = (
        part.reshape(-1, *part.shape[-2:])[0, 1:].double() for part in (cos, sin)
    )  # the positions of all axes are equal
    size = cos.shape[-1]
    keys = seen["keys"].double().reshape(-1, size)
    turned = torch.eye(size, dtype=torch.float64)
    half = torch.cat([-turned[:, size // 2 :], turned[:, : size // 2]], -1)  # rotate_half of each unit query
    queries = turned * cos[:, None] + half * sin[:, None]  # [n, unit query, d_h]
    return torch.einsum("nid,hd->hni", queries, keys)


@pytest.mark.parametrize("family", ["llava", "qwen2-vl", "qwen3-vl"])
def test_moments_equal_those_of_the_models_keys_and_rotations(family: str) -> None:
    model = tiny_models.model(family, dtype="float32").eval()
    sink = sink_of(model)
    logits = logits_of_unit_queries(model, LAYER, sink.token)
    assert sorted(sink.moments) == list(range(len(model.get_decoder().layers)))
    moments = logits.mT @ logits  # the error of float32 angles of up to 512 radians
    assert torch.allclose(sink.moments[LAYER], moments, rtol=0, atol=3e-5 * float(moments.abs().max()))
    assert not model.training


def test_a_protected_edit_keeps_the_logits_of_the_sink() -> None:
    """Use a query in the protected directions; the default edit changes its logits."""
    model = demo_model().model
    layer, size = 2, 8
    attention = model.get_decoder().layers[layer].self_attn
    sink = sink_of(model)
    logits = logits_of_unit_queries(model, layer, sink.token)
    heads = model.config.get_text_config().num_attention_heads
    group = heads // len(logits)
    before = attention.q_proj.weight.detach().double().unflatten(0, (heads, -1)).clone()
    reached = [torch.linalg.svd(before[h].T @ logits[h // group].T, full_matrices=False) for h in range(heads)]
    changes = {}
    for protect in ("none", f"sink:{size}"):
        with qkedit.edit(model, layers=layer, protect=protect, compute_dtype="float64"):
            after = attention.q_proj.weight.detach().double().unflatten(0, (heads, -1)).clone()
        changes[protect] = [
            float(((after[h] - before[h]) @ reached[h].U[:, :size]).norm() / (after[h] - before[h]).norm())
            for h in range(heads)
        ]
    assert max(changes[f"sink:{size}"]) < 1e-4
    assert min(changes["none"]) > 0.01


def test_a_protected_run_equals_the_edit_in_memory_and_records_the_sink(tmp_path: Path) -> None:
    model = demo_model().model
    sink = sink_of(model)
    report = qkedit.steer(SMALL_DEMO, out=tmp_path / "out", layers="2,5", protect="sink:3", sink=sink, fsync=False)
    recorded = read_manifest(tmp_path / "out").options
    assert recorded is not None
    assert recorded.protect is not None
    assert (recorded.protect.directions, recorded.protect.token) == (3, sink.token)
    assert recorded.protect.sha256 == sink.sha256
    assert qkedit.verify(tmp_path / "out", base=SMALL_DEMO).mismatches == ()
    written, before = load(str(tmp_path / "out"), dtype="float32").model, weights_of(model)
    plan = plan_for(SMALL_DEMO, SteerOptions("2,5", suppression=Suppression(), device="cpu", protect=3))
    with edit_as_stored(model, plan) as edit:
        assert differing(weights_of(written), model) == set()
    assert [head.suppressed for record in edit.records for head in record.heads] == [
        head.suppressed for head in report.heads
    ]
    assert differing(before, model) == set()


def test_invalid_requests_to_protect_the_sink_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found by a run of the model"):
        run_plan(plan_for(SMALL_DEMO, SteerOptions(protect=2)), OutputOptions(tmp_path / "out"))
    with pytest.raises(UsageError, match="'sunk' cannot be protected"):
        qkedit.steer(SMALL_DEMO, out=tmp_path / "out", protect="sunk")
    with pytest.raises(UsageError, match="symmetric channel cannot protect"):
        SteerOptions(suppression=Suppression(channel="symmetric"), protect=2)
    with pytest.raises(UsageError, match="all would be protected"):
        plan_for(SMALL_DEMO, SteerOptions(protect=512))
    with pytest.raises(UsageError, match="no index-matched control exists"):
        plan_for(SMALL_DEMO, SteerOptions(suppression=Suppression(k=15, control="index"), protect=4))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_first_token_is_refused() -> None:
    model = tiny_models.model("llava", dtype="float32")
    config = model.config.get_text_config()
    config.bos_token_id = config.eos_token_id = None
    assert checkpoint_of(model).tensors
    with pytest.raises(UnsupportedForm, match="no token that begins or ends a text"):
        sink_of(model)


def test_inspect_shows_spectra_without_the_protected_directions() -> None:
    whole = qkedit.inspect(SMALL_DEMO, layers=2).layers[0].heads
    rest = qkedit.inspect(SMALL_DEMO, layers=2, protect="sink:3").layers[0].heads
    for before, after in zip(whole, rest, strict=True):
        assert after.rank == before.rank - 3
        assert all(
            low <= high * (1 + 1e-9) for low, high in zip(after.singular_values, before.singular_values, strict=True)
        )
