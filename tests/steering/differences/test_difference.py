"""Test comparisons per head against dense products and decompositions in float64."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

import qkedit
from qkedit.api.editing import steer
from qkedit.demo import SMALL_DEMO
from qkedit.errors import CheckpointError, UsageError
from qkedit.steering.differences.difference import difference_between
from tests.cli.command import qkedit as run
from tests.steering.checkpoints import (
    HEADS,
    KEY_HEADS,
    MODULES,
    contents,
    heads_of,
    key_name,
    query_name,
    tensors_of,
    weights,
    write,
)

GROUP = HEADS // KEY_HEADS


def products(tensors: dict[str, Tensor], layer: int) -> list[np.ndarray]:
    """Return the dense `W_qᵀ W_k` of each head."""
    queries, keys = heads_of(tensors[query_name(layer)], HEADS), heads_of(tensors[key_name(layer)], KEY_HEADS)
    return [query.T @ keys[head // GROUP] for head, query in enumerate(queries)]


def directions(before: dict[str, Tensor], after: dict[str, Tensor], layer: int, head: int) -> np.ndarray:
    """Return the span of a head's change, by the dense decomposition of the change of the queries."""
    change = heads_of(after[query_name(layer)], HEADS)[head] - heads_of(before[query_name(layer)], HEADS)[head]
    _, values, right = np.linalg.svd(change)
    return right[: (values > 1e-4 * values[0]).sum()].T if values[0] else right[:0].T


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base in float32, and edits in all layouts: a and b act on common heads with different ranks."""
    place = tmp_path_factory.mktemp("differences")
    base = write(place / "base", weights())
    how: dict[str, Any] = {"fsync": False, "device": "cpu"}
    steer(base, out=place / "a", layers="0,1", k=3, heads="0-2", layout="delta", **how)
    steer(base, out=place / "a full", layers="0,1", k=3, heads="0-2", **how)
    steer(base, out=place / "b", layers="1,2", k=2, control="index", layout="delta", **how)
    steer(base, out=place / "b full", layers="1,2", k=2, control="index", **how)
    steer(base, out=place / "c", layers="2", k=1, layout="delta", **how)
    return place


@pytest.mark.parametrize("form", ["a", "a full"])
@pytest.mark.parametrize("other", ["b", "b full"])
def test_every_figure_equals_that_of_the_dense_products(place: Path, form: str, other: str) -> None:
    found = difference_between(str(place / form), str(place / other), base=str(place / "base"))
    before, one, two = (tensors_of(place / name) for name in ("base", "a full", "b full"))
    assert found.base == "base"
    assert [tensor.name for tensor in found] == [query_name(layer) for layer in range(3)]
    assert [layer.layer for layer in found.layers] == [0, 1, 2]
    assert [[head.head for head in layer.heads] for layer in found.layers] == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    angles_seen = 0
    for layer in found.layers:
        dense = [products(tensors, layer.layer) for tensors in (before, one, two)]
        for head in layer.heads:
            reference, first, second = (side[head.head] for side in dense)
            values = np.linalg.svd(second - first, compute_uv=False)
            assert head.key_head == head.head // GROUP
            assert head.norm == pytest.approx(math.sqrt((values**2).sum()), rel=1e-9)
            assert head.relative == pytest.approx(head.norm / np.linalg.norm(reference), rel=1e-9)
            assert head.rank == (values > 1e-5 * values[0]).sum()
            spans = [directions(before, tensors, layer.layer, head.head) for tensors in (one, two)]
            assert [head.rank_a, head.rank_b] == [span.shape[1] for span in spans]
            if min(span.shape[1] for span in spans):
                angles_seen += 1
                expected = sorted(np.degrees(subspace_angles(*spans)))
                assert head.angles == pytest.approx(expected, abs=1e-3)
            else:
                assert head.angles == ()
        sizes, changes = np.array(dense[0]), np.array(dense[2]) - np.array(dense[1])
        assert layer.relative == pytest.approx(np.linalg.norm(changes) / np.linalg.norm(sizes), rel=1e-9)
        assert not layer.keys_differ
    assert angles_seen == 3


def test_differences_of_checkpoints_are_relative_to_the_first(place: Path) -> None:
    found = difference_between(str(place / "base"), str(place / "a full"))
    before, after = tensors_of(place / "base"), tensors_of(place / "a full")
    assert found.base is None
    assert found.compared == len(weights())
    for layer in found.layers:
        for head in layer.heads:
            first, second = (products(tensors, layer.layer)[head.head] for tensors in (before, after))
            assert head.relative == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first))
            assert (head.rank, head.rank_a, head.rank_b, head.angles) == (3, None, None, ())


def test_an_edit_can_be_compared_with_its_base(place: Path) -> None:
    found = difference_between(str(place / "base"), str(place / "a"))
    full = difference_between(str(place / "base"), str(place / "a full"), base=str(place / "base"))
    assert found.layers == full.layers
    assert list(found) == list(full)
    assert {(head.rank, head.rank_a, head.rank_b) for layer in found.layers for head in layer.heads} == {(3, 0, 3)}


@pytest.mark.parametrize("pair", [("a", "a full"), ("a full", "a"), ("b", "b")])
def test_layouts_of_one_edit_do_not_differ(place: Path, pair: tuple[str, str]) -> None:
    found = difference_between(*(str(place / name) for name in pair), base=str(place / "base"))
    assert (len(found), found.layers) == (0, ())


def test_adapters_and_deltas_are_compared(place: Path, tmp_path: Path) -> None:
    """The layouts differ at most by rounding; a stronger edit has the same directions and two more."""
    for name, layout, k in (("adapter", "lora", 1), ("delta", "delta", 1), ("more", "delta", 3)):
        with patch("qkedit.checkpoint.query_modules.query_modules", lambda *_: MODULES):
            steer(place / "base", out=tmp_path / name, layers="1", k=k, layout=layout, device="cpu", fsync=False)
    same, more = (
        qkedit.diff(tmp_path / "adapter", tmp_path / other, base=place / "base") for other in ("delta", "more")
    )
    assert all(head.relative is not None and head.relative < 1e-6 for layer in same.layers for head in layer.heads)
    assert all(head.rank == 0 for layer in same.layers for head in layer.heads)
    (layer,) = more.layers
    assert [(head.rank, head.rank_a, head.rank_b) for head in layer.heads] == [(2, 1, 3)] * HEADS
    assert max(angle for head in layer.heads for angle in head.angles) < 0.01


def test_different_keys_are_part_of_the_difference(place: Path, tmp_path: Path) -> None:
    theirs = weights()
    theirs[key_name(1)][:8] *= 1.5
    theirs["language_model.lm_head.weight"][0] += 1
    write(tmp_path / "theirs", theirs)
    found = difference_between(str(place / "base"), str(tmp_path / "theirs"))
    (layer,) = found.layers
    assert layer.keys_differ
    assert [(head.head, head.rank) for head in layer.heads] == [(0, 8), (1, 8)]
    assert [head.relative for head in layer.heads] == pytest.approx([0.5, 0.5])


def test_invalid_comparisons_are_refused_or_left_out(place: Path, tmp_path: Path) -> None:
    delta, base = str(place / "a"), str(place / "base")
    with pytest.raises(UsageError, match=r"--base: .*not recorded"):
        difference_between(delta, str(place / "b"))
    other = write(tmp_path / "other", weights(seed=1))
    with pytest.raises(CheckpointError, match="not the one that was edited"):
        difference_between(delta, str(place / "b"), base=str(other))
    with pytest.raises(CheckpointError, match="not the one that was edited"):
        difference_between(delta, str(other))
    with pytest.raises(CheckpointError, match="shape"):
        difference_between(delta, SMALL_DEMO, base=base)
    strange = write(tmp_path / "strange", {"x": torch.zeros(2)})
    found = difference_between(base, str(strange))
    assert found.layers == ()
    assert found.not_per_head is not None
    assert len(found) == found.compared == len(weights()) + 1


def test_invalid_weights_have_no_figures(place: Path, tmp_path: Path) -> None:
    theirs = weights()
    theirs[query_name(1)][0, 0], theirs[query_name(2)][0] = torch.nan, 0
    write(tmp_path / "theirs", theirs)
    found = difference_between(str(place / "base"), str(tmp_path / "theirs"), base=str(place / "base"))
    broken, sound = found.layers
    assert broken.relative is None
    (head,) = broken.heads
    assert (head.head, head.norm, head.relative, head.rank, head.rank_b) == (0, None, None, None, None)
    assert [(head.head, head.rank) for head in sound.heads] == [(0, 1)]
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_command_lists_layers_and_heads(place: Path, tmp_path: Path) -> None:
    before = contents(place)
    sides = ["diff", place / "a", place / "b", "--base", place / "base"]
    found = difference_between(*map(str, sides[1:3]), base=str(sides[4]))
    table = tmp_path / "heads.csv"
    result = run(*sides, "--csv", table, "--json")
    assert result.code == 0
    assert result.document["layers"] == json.loads(json.dumps(found.as_dict()))["layers"]
    assert result.document["written"] == [str(table)]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    heads = [(layer, head) for layer in found.layers for head in layer.heads]
    assert len(rows) == len(heads)
    for row, (layer, head) in zip(rows, heads, strict=True):
        assert (int(row["layer"]), int(row["head"]), float(row["norm"])) == (layer.layer, head.head, head.norm)
        angles = [float(row[name]) for name in row if name.startswith("angle_") and row[name]]
        assert angles == list(head.angles)
    assert [line.split()[:2] for line in run(*sides).stdout.splitlines() if line.startswith("    ")] == [
        ["0", "3"],
        ["1", "4"],
        ["2", "4"],
    ]
    by_head = run(*sides, "--detail").stdout
    assert [line.split()[:2] for line in by_head.splitlines() if line.startswith("    ")] == [
        [str(layer.layer), str(head.head)] for layer, head in heads
    ]
    assert contents(place) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--only-queries",), "--only-queries: has no effect without --extract"),
        (("--overwrite",), "--overwrite: has no effect without --extract"),
        (("--extract", "d", "--detail"), "--detail: has no effect with --extract"),
        (("--csv", "/no/such/place.csv"), "--csv"),
        (("--revision", "main"), "--revision"),
    ],
)
def test_flags_without_effect_are_refused(place: Path, tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    result = run("diff", place / "base", place / "a full", *more)
    assert result.code == 2
    assert words in result.sentence()


def test_the_base_of_the_environment_is_used_only_for_edits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKEDIT_BASE", str(place / "base"))
    assert run("diff", place / "a", place / "b", "--json").document["base"] == "base"
    assert run("diff", place / "base", place / "a full", "--json").document["base"] is None


def test_an_edit_is_extracted_from_python(place: Path, tmp_path: Path) -> None:
    report = qkedit.extract(place / "base", place / "a full", out=tmp_path / "delta", fsync=False)
    assert contents(tmp_path / "delta") == contents(place / "a")
    assert report.layout == "delta"
