"""Test families saved by transformers, from files to files, against the dense float64 formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qkedit.api.editing import steer
from tests.spectral.oracle import projected_query
from tests.steering.checkpoints import TEXT_QUERY, changed_bytes, contents, heads_of, same_bits, tensors_of
from tests.steering.conftest import TinyCheckpoint

FAMILIES = ("qwen2-vl", "qwen2.5-vl", "llava", "llava-onevision", "internvl", "mllama", "idefics3")
HEADS, MODES, RETAIN = 4, 3, 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_equals_the_base_with_projected_queries(family: str, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    base, out = tiny(family), tmp_path / "edited"
    report = steer(base, out=out, layers="1-2", k=MODES, retain=RETAIN, compute_dtype="float64", fsync=False)
    before, after = tensors_of(base), tensors_of(out)
    # Layer 1 of the tiny Mllama attends to the image only and has no self-attention.
    layers = {2} if family == "mllama" else {1, 2}
    planned = {name for name in before if (match := TEXT_QUERY.match(name)) and int(match["layer"]) in layers}
    assert len(planned) == len(layers)
    assert {tensor.name for tensor in report.manifest.tensors} == planned
    assert all(head.gap >= 1.001 for head in report.heads), "otherwise the dominant modes are arbitrary"
    for name in planned:
        queries, keys = before[name], before[name.replace("q_proj", "k_proj")]
        key_heads = heads_of(keys, 4 if family == "llava" else 2)
        group = HEADS // len(key_heads)
        exact = [
            torch.from_numpy(projected_query(query, key_heads[head // group], MODES, RETAIN))
            for head, query in enumerate(heads_of(queries, HEADS))
        ]
        # Both sides are float64 until they are rounded once, so no bit may differ.
        assert same_bits(after[name], torch.cat(exact).to(torch.bfloat16))
    assert set(after) == set(before)
    assert all(same_bits(after[name], before[name]) for name in set(before) - planned)
    _assert_only_planned_bytes_differ(base, out, planned)


def _assert_only_planned_bytes_differ(base: Path, out: Path, planned: set[str]) -> None:
    """Compare all bytes outside the planned ranges: headers, index, other tensors and side files."""
    changed = changed_bytes(base, out)
    for file in changed:
        raw = (base / file).read_bytes()
        data = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:data])
        header.pop("__metadata__", None)
        ranges = [range(*(data + end for end in header[name]["data_offsets"])) for name in planned & set(header)]
        assert {at for at in changed[file] if not any(at in allowed for allowed in ranges)} == set()
        assert all(any(at in allowed for at in changed[file]) for allowed in ranges)
    ours, theirs = contents(out), contents(base)
    assert set(ours) - set(theirs) == {"README.md", "qkedit.json"}
    assert {file for file in theirs if ours[file] != theirs[file]} == {file for file in changed if changed[file]}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_loads_without_missing_or_unexpected_weights(
    family: str, tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    steer(tiny(family), out=tmp_path / "edited", layers="all", k=1, fsync=False)
    _, loading = AutoModelForImageTextToText.from_pretrained(tmp_path / "edited", output_loading_info=True)
    assert not any(loading.values()), loading


def test_float32_arithmetic_differs_by_at_most_one_rounding(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    """The default arithmetic may cross one rounding boundary of bfloat16 but not two."""
    base, out = tiny("qwen2-vl"), tmp_path / "edited"
    steer(base, out=out, layers="all", k=MODES, fsync=False)
    steer(base, out=tmp_path / "exact", layers="all", k=MODES, compute_dtype="float64", fsync=False)
    default, exact = tensors_of(out), tensors_of(tmp_path / "exact")
    for name in filter(TEXT_QUERY.match, exact):
        difference = (default[name].double() - exact[name].double()).abs()
        # Neighbouring bfloat16 numbers differ by at most 2⁻⁷ of their size; near zero the error of float32 dominates.
        assert (difference <= 2**-7 * exact[name].double().abs() + 1e-6).all()
        assert (difference > 0).double().mean() < 0.01
