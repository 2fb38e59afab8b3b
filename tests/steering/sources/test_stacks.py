"""Test combined and scaled edits, on hand-written checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qkedit.api.editing import steer
from qkedit.checkpoint.contents import DELTA_FILE
from qkedit.checkpoint.manifest_file import Derivation
from qkedit.errors import CheckpointError, QkeditError, UsageError
from qkedit.spectral.changes.combination import rounded
from qkedit.steering.apply import apply_edits, interpolate_edit, merge_edits
from qkedit.steering.run import SteerReport
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.verify import verify
from tests.cli.command import qkedit
from tests.steering.checkpoints import contents, query_name, same_bits, tensors_of, weights, write

DELTA = OutputOptions(Path(), "delta", fsync=False)
FULL = OutputOptions(Path(), fsync=False)


def edit_of(base: Path, out: Path, **options: Any) -> Path:
    steer(base, out=out, **{"layout": "delta", "fsync": False, "device": "cpu", "k": 1, **options})
    return out


def applied(edits: list[Path], base: Path, out: Path) -> SteerReport:
    return apply_edits(edits, base=str(base), output=replace(FULL, out=out))


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write(tmp_path / "base", weights(dtype=request.param))


def test_edits_of_different_layers_and_heads_keep_their_bits(base: Path, tmp_path: Path) -> None:
    """Output, manifest and card of two edits of different heads do not depend on the order."""
    edits = [
        edit_of(base, tmp_path / "one", layers="0,1", heads="0"),
        edit_of(base, tmp_path / "two", layers="1,2", heads="2,3", layout="full"),
    ]
    report = applied(edits, base, tmp_path / "stack")
    applied(edits[::-1], base, tmp_path / "other order")
    assert contents(tmp_path / "stack") == contents(tmp_path / "other order")
    before, found = tensors_of(base), tensors_of(tmp_path / "stack")
    alone = [tensors_of(edit) for edit in edits]
    expected = dict(before)
    expected[query_name(0)] = alone[0][query_name(0)]
    expected[query_name(2)] = alone[1][query_name(2)]
    expected[query_name(1)] = torch.cat([alone[0][query_name(1)][:8], alone[1][query_name(1)][8:]])
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in expected)
    assert report.warnings == ()
    manifest = report.manifest
    assert manifest.derivation is Derivation.STACKED
    assert [[head.head for head in tensor.heads] for tensor in manifest.tensors] == [[0], [0, 2, 3], [2, 3]]
    assert all(head.overlap is None for head in manifest.heads)
    recorded = [json.loads((edit / "qkedit.json").read_bytes()) for edit in edits]
    assert sorted(part["options"]["heads"] for part in manifest.made_of or ()) == sorted(
        part["options"]["heads"] for part in recorded
    )
    assert not verify(tmp_path / "stack", base=str(base)).mismatches


def test_the_overlap_of_two_edits_of_a_head_is_reported(base: Path, tmp_path: Path) -> None:
    """The stronger edit removes the mode of the weaker one too, so their sum removes it twice."""
    edits = [edit_of(base, tmp_path / f"k{k}", layers="1", heads="0-2", k=k) for k in (1, 3)]
    report = applied(edits, base, tmp_path / "stack")
    applied(edits[::-1], base, tmp_path / "other order")
    assert contents(tmp_path / "stack") == contents(tmp_path / "other order")
    name = query_name(1)
    before, one, other = (tensors_of(place)[name] for place in (base, *edits))
    exact = before.double() + (one.double() - before.double()) + (other.double() - before.double())
    found = tensors_of(tmp_path / "stack")[name]
    both = (one != before) & (other != before)
    assert torch.equal(found[both], rounded(exact, before.dtype)[both])
    (warning,) = (warning for warning in report.warnings if "twice" in warning)
    assert "3 heads in layer 1:" in warning
    overlaps = [head.overlap for head in report.manifest.heads]
    for head, overlap in enumerate(overlaps):
        rows = slice(8 * head, 8 * head + 8)
        # The first mode is in both edits: the overlap is the whole change of the weaker one.
        shared = (one[rows].double() - before[rows].double()).norm() / (exact[rows] - before[rows].double()).norm()
        assert overlap == pytest.approx(float(shared), rel=0.05)
    assert max(head.order or 0 for head in report.manifest.heads) < 0.03  # projectors of one family commute
    assert all(head.energy_removed < 1 for head in report.manifest.heads)


def test_applying_a_merged_delta_equals_applying_all_edits(base: Path, tmp_path: Path) -> None:
    edits = [edit_of(base, tmp_path / f"k{k}", layers=layers, k=k) for k, layers in ((1, "0,1"), (2, "1,2"))]
    merge_edits(edits, output=replace(DELTA, out=tmp_path / "merged"), base=str(base))
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == sorted([DELTA_FILE, "qkedit.json"])
    applied(edits, base, tmp_path / "stack")
    applied([tmp_path / "merged"], base, tmp_path / "at once")
    assert contents(tmp_path / "stack") == contents(tmp_path / "at once")


@pytest.mark.parametrize("layout", ["full", "delta"])
def test_strength_one_equals_the_edit(base: Path, tmp_path: Path, layout: Any) -> None:
    edit = edit_of(base, tmp_path / "delta", layers="1", k=2)
    output = OutputOptions(tmp_path / "same", layout, fsync=False)
    interpolate_edit(edit, 1, output=output, base=str(base))
    applied([edit], base, tmp_path / "applied")
    assert contents(tmp_path / "same") == contents(tmp_path / "applied" if layout == "full" else edit)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_a_strength_scales_the_edit(base: Path, tmp_path: Path, strength: float) -> None:
    edit = edit_of(base, tmp_path / "delta", layers="1,2", heads="0,1", k=2)
    report = interpolate_edit(edit, strength, output=replace(FULL, out=tmp_path / "edited"), base=str(base))
    before, after, found = (tensors_of(place) for place in (base, edit, tmp_path / "edited"))
    for layer in (1, 2):
        old, new = (tensors[query_name(layer)].double() for tensors in (before, after))
        expected = rounded(old + strength * (new - old), before[query_name(layer)].dtype)
        assert torch.equal(found[query_name(layer)], expected)
        assert torch.equal(found[query_name(layer)][16:], before[query_name(layer)][16:])
    assert report.manifest.strength == strength
    assert [part["options"]["k"] for part in report.manifest.made_of or ()] == [2]
    (part,) = report.manifest.made_of or ()
    once = [head["energy_removed"] for tensor in part["tensors"] for head in tensor["heads"]]
    for head, whole in zip(report.manifest.heads, once, strict=True):
        # The share 1 − strength of each mode remains.
        assert head.energy_removed == pytest.approx(whole * (1 - (1 - strength) ** 2), abs=0.02)
    assert f"multiplied by\n  {strength}" in (tmp_path / "edited" / "README.md").read_text()
    assert not verify(tmp_path / "edited", base=str(base)).mismatches


def test_incompatible_edits_and_strengths_are_refused(base: Path, tmp_path: Path) -> None:
    edit, other_base = edit_of(base, tmp_path / "delta", layers="1"), write(tmp_path / "other", weights(seed=1))
    foreign = edit_of(other_base, tmp_path / "foreign", layers="1")
    shutil.copytree(edit, tmp_path / "copy")
    output = replace(FULL, out=tmp_path / "out")
    with pytest.raises(UsageError, match="is the same edit as"):
        apply_edits([edit, tmp_path / "copy"], base=str(base), output=output)
    with pytest.raises(CheckpointError, match=r"not the one that was edited|of another dtype"):
        apply_edits([edit, foreign], base=str(base), output=output)
    with pytest.raises(CheckpointError, match="no readable"):
        apply_edits([edit, base], base=str(base), output=output)
    with pytest.raises(UsageError, match="a single edit cannot be merged"):
        merge_edits([edit], base=str(base), output=replace(DELTA, out=tmp_path / "out"))
    with pytest.raises(UsageError, match="not recorded"):
        merge_edits([edit, foreign], output=replace(DELTA, out=tmp_path / "out"))
    for strength in (0, -1, 2.1, float("nan")):
        with pytest.raises(UsageError, match="above 0"):
            interpolate_edit(edit, strength, base=str(base), output=output)
    assert not (tmp_path / "out").exists()


def test_a_change_that_storage_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(dtype=torch.bfloat16))
    edit = edit_of(base, tmp_path / "delta", layers="1")
    with pytest.raises(QkeditError, match="lost in rounding"):
        interpolate_edit(edit, 1e-4, base=str(base), output=replace(FULL, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["apply", "merge", "interpolate"])
def test_a_damaged_edit_leaves_no_output(tmp_path: Path, command: str) -> None:
    """The last tensor of an edit is damaged, when the first ones are already written."""
    base = write(tmp_path / "base", weights())
    edits = [edit_of(base, tmp_path / f"k{k}", layers="0-2", k=k) for k in (1, 2)]
    file = edits[0] / DELTA_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    there = sorted(path.name for path in tmp_path.iterdir())
    further = ["--strength", "0.5"] if command == "interpolate" else [edits[1]]
    result = qkedit(command, edits[0], *further, "--base", base, "--out", tmp_path / "out", "--no-fsync")
    assert result.code == 1
    assert "missing or damaged" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_the_commands_apply_merge_and_interpolate(base: Path, tmp_path: Path) -> None:
    edits = [edit_of(base, tmp_path / f"k{k}", layers="1", k=k) for k in (1, 2)]
    where = ["--base", base, "--no-fsync"]
    assert qkedit("merge", *edits, *where, "--out", tmp_path / "merged").code == 0
    result = qkedit("apply", *edits, *where, "--out", tmp_path / "stack")
    assert result.code == 0
    assert "removed twice" in result.stderr
    half, none = (["interpolate", edits[0], "--strength", strength, *where] for strength in ("0.5", "0"))
    result = qkedit(*half, "--layout", "delta", "--out", tmp_path / "half")
    assert result.code == 0
    assert "in strength 0.5" in result.stdout
    assert "strength" in qkedit(*none, "--out", tmp_path / "none", "--json").document["error"]["where"]


def test_adapters_are_stacked_like_deltas(tmp_path: Path) -> None:
    """An adapter and a delta change the same heads; in float32, an adapter is the whole edit."""
    base = write(tmp_path / "base", weights())
    one = edit_of(base, tmp_path / "lora", layers="0,1", k=2, layout="lora")
    same = edit_of(base, tmp_path / "same", layers="0,1", k=2)
    other = edit_of(base, tmp_path / "other", layers="1,2", k=1, channel="symmetric")
    applied([one, other], base, tmp_path / "with adapter")
    applied([same, other], base, tmp_path / "with delta")
    found, expected = tensors_of(tmp_path / "with adapter"), tensors_of(tmp_path / "with delta")
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected)
    assert same_bits(found[query_name(2)], expected[query_name(2)])
