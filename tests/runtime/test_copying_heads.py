"""Test copying heads against attention weights read one by one, and edits that spare heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import qkedit
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UnsupportedForm, UsageError
from qkedit.laboratory.tuning.space import Candidate
from qkedit.runtime import copying_heads
from qkedit.runtime.editing import edit_as_stored
from qkedit.runtime.generation import load
from qkedit.steering.manifest import read_manifest
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions
from tests import tiny_models
from tests.cli.command import qkedit as qkedit_command
from tests.laboratory.small_eval_sets import demo_model, differing, weights_of


def read_one_by_one(model: Any, ids: torch.Tensor, layer: int, head: int) -> tuple[float, float]:
    """Return the mean attention to the token after the first occurrence, and to the previous token."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(input_ids=ids, output_attentions=True).attentions[layer]
    induction, previous = [], []
    for sequence, tokens in enumerate(ids.tolist()):
        for place, token in enumerate(tokens):
            weights = attention[sequence, head, place]
            if place:
                previous.append(float(weights[place - 1]))
            if token in tokens[:place]:
                induction.append(float(weights[tokens.index(token) + 1]))
    return sum(induction) / len(induction), sum(previous) / len(previous)


@pytest.mark.parametrize("family", ["llava", "qwen3-vl"])
def test_shares_equal_those_of_the_models_attention(family: str) -> None:
    model = tiny_models.model(family, dtype="float32").train()
    usual = model.config._attn_implementation
    with patch.multiple(copying_heads, LENGTH=9, SEQUENCES=2):
        ids = copying_heads._repeated_tokens(model)
        shares = copying_heads.copying_shares(model)
        assert model.training
        assert (model.config._attn_implementation, usual) == (usual, "sdpa")
        limit = float(max(max(pair[0].max(), pair[1].max()) for pair in shares.values()))
        with patch.object(copying_heads, "THRESHOLD", limit):
            found = copying_heads.copying_heads(model)
    assert ids.shape == (2, 18)
    assert torch.equal(ids[:, :9], ids[:, 9:])
    assert not set(ids.flatten().tolist()) & copying_heads._special_tokens(model.config.to_dict())
    model.eval()
    for layer, (induction, previous) in shares.items():
        for head in range(len(induction)):
            expected = read_one_by_one(model, ids, layer, head)
            assert (float(induction[head]), float(previous[head])) == pytest.approx(expected, abs=1e-6)
            is_largest = bool(torch.maximum(induction[head], previous[head]) >= limit)
            assert (head in found.get(layer, ())) == is_largest
    assert sum(map(len, found.values())) == 1


def test_spared_heads_are_unchanged_and_recorded(tmp_path: Path) -> None:
    spared = {2: (0, 3), 5: tuple(range(8)), 7: (1,)}
    report = qkedit.steer(SMALL_DEMO, out=tmp_path / "out", layers="2,4,5", spare=spared, fsync=False)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.options is not None
    assert manifest.options.spared == {"2": (0, 3), "5": tuple(range(8))}  # in the chosen layers
    edited = {tensor.layer: [head.head for head in tensor.heads] for tensor in manifest.tensors}
    assert edited == {2: [1, 2, 4, 5, 6, 7], 4: list(range(8))}
    assert qkedit.verify(tmp_path / "out", base=SMALL_DEMO).mismatches == ()
    plain = qkedit.steer(SMALL_DEMO, out=tmp_path / "plain", layers="2,4,5", fsync=False)
    alike = {(tensor.layer, head.head): head for tensor in plain.manifest.tensors for head in tensor.heads}
    for tensor in report.manifest.tensors:
        assert all(head == alike[tensor.layer, head.head] for head in tensor.heads)


def test_steer_says_how_many_heads_it_left_alone(tmp_path: Path) -> None:
    words = (SMALL_DEMO, "--layers", "2", "--spare", "induction", "--no-fsync")
    for name, shown, line in (
        ("two", {2: (0, 3)}, "spared   2 heads left alone"),
        ("none", {}, "spared   none, since no head of these layers counts as copying"),
    ):
        with patch("qkedit.runtime.editing.copying_heads", return_value=shown):
            result = qkedit_command("steer", *words, "--out", tmp_path / name)
        assert result.code == 0
        assert line in result.stdout.splitlines()
    assert "spared" not in qkedit_command("steer", *words[:3], "--out", tmp_path / "plain").stdout


def test_edits_in_memory_and_of_a_sweep_spare_the_copying_heads(tmp_path: Path) -> None:
    model = demo_model().model
    before, shown = weights_of(model), {2: (0, 3)}
    qkedit.steer(SMALL_DEMO, out=tmp_path / "out", layers="2", spare=shown, device="cpu", fsync=False)
    written = load(str(tmp_path / "out"), dtype="float32").model
    cell = Candidate("2", "all", 4, None, "full", 0.0, spare="induction")
    assert cell.name == "layers 2, k 4, full, retain 0, spare induction"
    options = cell.arm().steer
    assert options is not None
    with patch("qkedit.runtime.editing.copying_heads", return_value=shown) as run:
        with edit_as_stored(model, plan_for(SMALL_DEMO, options)):
            assert differing(weights_of(written), model) == set()
        with qkedit.edit(model, layers=2, spare="induction") as edit:
            assert [head.head for record in edit.records for head in record.heads] == [1, 2, 4, 5, 6, 7]
    assert run.call_count == 2
    assert differing(before, model) == set()


def test_invalid_requests_to_spare_heads_are_refused() -> None:
    plan = plan_for(SMALL_DEMO, SteerOptions("2"))
    with pytest.raises(UsageError, match="every chosen head would be left alone"):
        plan.sparing({2: range(8)})
    with pytest.raises(UsageError, match="head 8: layer 2 has 8 query heads"):
        plan.sparing({2: (1, 8)})
    with pytest.raises(UsageError, match="no role 'copying'"):
        SteerOptions(spare="copying")  # type: ignore[arg-type]
    model = tiny_models.model("llava", dtype="float32")
    with patch.object(copying_heads, "LENGTH", 7), pytest.raises(UnsupportedForm, match="too few to repeat"):
        copying_heads.copying_heads(model)
