"""Test comparisons of two models against dense products, and the search for the other model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import qkedit
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.demo import SMALL_DEMO
from qkedit.errors import UsageError
from qkedit.inspection.comparison import base_of, compare_spectra
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.steering.plan import SteerPlan, make_plan
from qkedit.steering.steer_options import SteerOptions
from tests.spectral import oracle
from tests.steering.checkpoints import HEADS, KEY_HEADS, heads_of, key_name, query_name, weights, write


def plan(path: Path, channel: Channel = "full", layers: str = "all", k: int = 2) -> SteerPlan:
    options = SteerOptions(layers=layers, suppression=Suppression(k=k, channel=channel), allow_text_only=True)
    return make_plan(open_checkpoint(LocalFiles(path)), options)


def degrees_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(np.linalg.svd(first.T @ second)[1], -1, 1)))


@pytest.mark.parametrize("channel", ["full", "symmetric", "antisymmetric"])
def test_both_spectra_equal_those_of_dense_products(channel: Channel, tmp_path: Path) -> None:
    tensors = [weights(seed=seed, dtype=torch.float64) for seed in (0, 1)]
    paths = [write(tmp_path / str(number), found) for number, found in enumerate(tensors)]
    comparison = compare_spectra(plan(paths[0], channel), plan(paths[1], channel))
    assert [layer.layer for layer in comparison.layers] == [0, 1, 2]
    for layer in comparison.layers:
        for head in layer.heads:
            before, after = (
                oracle.modes(
                    heads_of(found[query_name(layer.layer)], HEADS)[head.head].T
                    @ heads_of(found[key_name(layer.layer)], KEY_HEADS)[head.key_head],
                    channel,
                )
                for found in tensors
            )
            for values, energy, cut, modes in (
                (head.before, head.energy_top_k_before, head.gap_at_k_before, before),
                (head.after, head.energy_top_k_after, head.gap_at_k_after, after),
            ):
                count = min(len(values), len(modes.values))
                np.testing.assert_allclose(values[:count], modes.values[:count], rtol=0, atol=1e-10)
                np.testing.assert_allclose(cut, modes.values[1] / modes.values[2], rtol=1e-8)
                np.testing.assert_allclose(energy, np.sum(modes.values[:2] ** 2) / np.sum(modes.values**2))
            columns = 2 * before.width
            for angles, side in ((head.query_side_angles, "left"), (head.key_side_angles, "right")):
                spans = [getattr(modes, side)[:, :columns] for modes in (before, after)]
                np.testing.assert_allclose(angles, degrees_between(*spans), atol=1e-5)


def test_an_edit_removes_its_modes_and_keeps_the_others(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    qkedit.steer(str(base), out=tmp_path / "edited", layers="1", k=2, allow_text_only=True)
    comparison = compare_spectra(plan(base), plan(tmp_path / "edited"))
    for layer in comparison.layers:
        for head in layer.heads:
            if layer.layer == 1:
                kept = head.before[2:]
                np.testing.assert_allclose(head.after, [*kept, 0.0, 0.0], atol=1e-6 * head.before[0])
                np.testing.assert_allclose(head.query_side_angles, [90, 90], atol=0.01)
            else:
                assert head.after == head.before
                np.testing.assert_allclose(head.query_side_angles, 0, atol=1e-5)


def test_angles_between_degenerate_subspaces_cause_a_warning(tmp_path: Path) -> None:
    tensors = weights(dtype=torch.float64)
    assert compare_spectra(plan(write(tmp_path / "sound", tensors)), plan(tmp_path / "sound")).warnings == ()
    for layer in range(3):
        for name in (query_name(layer), key_name(layer)):
            tensors[name] = torch.eye(8, 32, dtype=torch.float64).repeat(len(tensors[name]) // 8, 1)
    flat = plan(write(tmp_path / "flat", tensors))
    assert "in 12 of 12 heads" in compare_spectra(flat, flat).warnings[0]


def test_models_of_different_shapes_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    wider = {
        name: torch.cat([tensor, tensor], dim=1) if "_proj" in name else tensor for name, tensor in weights().items()
    }
    with pytest.raises(UsageError, match="the same shape"):
        compare_spectra(plan(base), plan(write(tmp_path / "wider", wider)))
    with pytest.raises(UsageError, match="same layers"):
        compare_spectra(plan(base), plan(base, layers="0-1"))


def test_the_base_is_found_by_the_manifest(tmp_path: Path) -> None:
    qkedit.steer(SMALL_DEMO, out=tmp_path / "edited", layers="1")
    base = base_of(open_checkpoint(LocalFiles(tmp_path / "edited")))
    assert base.files.name == SMALL_DEMO


def test_a_base_named_by_the_user_precedes_the_recorded_one(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    qkedit.steer(SMALL_DEMO, out=tmp_path / "edited", layers="1")
    for model in (tmp_path / "edited", base):
        assert base_of(open_checkpoint(LocalFiles(model)), str(base)).files.name == "base"
    with pytest.raises(UsageError, match="only a model on the hub has revisions"):
        base_of(open_checkpoint(LocalFiles(tmp_path / "edited")), revision="main")


def test_a_local_base_must_be_named(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights())
    with pytest.raises(UsageError, match="that names a base"):
        base_of(open_checkpoint(LocalFiles(base)))
    qkedit.steer(str(base), out=tmp_path / "edited", layers="1", allow_text_only=True)
    with pytest.raises(UsageError, match="local directory") as caught:
        base_of(open_checkpoint(LocalFiles(tmp_path / "edited")))
    assert "--base" in caught.value.remedy
