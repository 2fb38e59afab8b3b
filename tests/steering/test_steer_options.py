"""Test each option of the edit, from files to files, on hand-written checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.errors import UsageError
from qkedit.steering.engine.device import choose_device
from qkedit.steering.run import SteerReport
from qkedit.steering.verify import verify
from tests.spectral import oracle
from tests.steering.checkpoints import (
    HEAD_SIZE,
    HEADS,
    KEY_HEADS,
    heads_of,
    key_name,
    query_name,
    same_bits,
    tensors_of,
    weights,
    write,
)

GROUP = HEADS // KEY_HEADS


def edited(base: Path, tmp_path: Path, **options: Any) -> tuple[SteerReport, dict[str, Tensor]]:
    out = tmp_path / "edited"
    report = steer(base, out=out, overwrite=True, fsync=False, **options)
    return report, tensors_of(out)


def exact(base: Path, layer: int, head: int) -> tuple[Any, Any]:
    """Return the query head's weights and those of its key head, float64 numpy."""
    tensors = tensors_of(base)
    return (
        heads_of(tensors[query_name(layer)], HEADS)[head],
        heads_of(tensors[key_name(layer)], KEY_HEADS)[head // GROUP],
    )


def head(tensors: dict[str, Tensor], layer: int, number: int) -> Any:
    return heads_of(tensors[query_name(layer)], HEADS)[number]


def assert_close(actual: Any, expected: Any, dtype: str = "float32") -> None:
    """Check equality up to one rounding to the storage dtype and the error of the arithmetic."""
    spacing = {"float32": 2**-22, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    np.testing.assert_allclose(actual, expected, rtol=spacing, atol=1e-6)


@pytest.mark.parametrize("retain", [0.0, 0.3, 0.9])
def test_retain_is_the_remaining_share(base: Path, tmp_path: Path, retain: float) -> None:
    report, after = edited(base, tmp_path, layers="1", k=2, retain=retain)
    for number in range(HEADS):
        query, key = exact(base, 1, number)
        assert_close(head(after, 1, number), oracle.projected_query(query, key, 2, retain))
        record = report.heads[number]
        values = oracle.modes(query.T @ key).values
        np.testing.assert_allclose(record.suppressed, values[:2], rtol=1e-6)
        removed = (1 - retain**2) * (values[:2] ** 2).sum() / (values**2).sum()
        assert record.energy_removed == pytest.approx(removed, rel=1e-6)
        assert record.gap == pytest.approx(values[1] / values[2], rel=1e-5)
        moved = np.linalg.norm(head(after, 1, number) - query) / np.linalg.norm(query)
        assert record.relative_change == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("energy", [0.2, 0.5, 0.95])
def test_energy_suppresses_the_smallest_sufficient_number_of_modes(base: Path, tmp_path: Path, energy: float) -> None:
    report, after = edited(base, tmp_path, layers="0,2", energy=energy)
    counts = set()
    for tensor in report.manifest.tensors:
        for record in tensor.heads:
            query, key = exact(base, tensor.layer, record.head)
            count = oracle.count_for_energy(oracle.modes(query.T @ key).values, energy)
            assert len(record.suppressed) == count
            assert record.energy_removed >= energy - 1e-9
            assert_close(head(after, tensor.layer, record.head), oracle.projected_query(query, key, count, 0.0))
            counts.add(count)
    assert energy != 0.5 or len(counts) > 1, "heads must differ, otherwise a fixed k would pass too"


def test_only_the_chosen_heads_change(base: Path, tmp_path: Path) -> None:
    report, after = edited(base, tmp_path, layers="all", heads="1,3", k=1)
    before = tensors_of(base)
    assert {record.head for record in report.heads} == {1, 3}
    assert {record.key_head for record in report.heads} == {0, 1}
    for layer in range(3):
        old, new = (tensors[query_name(layer)].unflatten(0, (HEADS, HEAD_SIZE)) for tensors in (before, after))
        assert same_bits(old[[0, 2]], new[[0, 2]])
        for number in (1, 3):
            assert_close(new[number].double().numpy(), oracle.projected_query(*exact(base, layer, number), 1, 0.0))


def test_the_edit_of_a_head_does_not_depend_on_other_heads(base: Path, tmp_path: Path) -> None:
    _, alone = edited(base, tmp_path, layers="1", heads="2", k=2)
    _, together = edited(base, tmp_path, layers="all", heads="all", k=2)
    rows = slice(2 * HEAD_SIZE, 3 * HEAD_SIZE)
    torch.testing.assert_close(alone[query_name(1)][rows], together[query_name(1)][rows], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("channel", ["symmetric", "antisymmetric"])
def test_channels_write_the_part_that_queries_can_realise(base: Path, tmp_path: Path, channel: Any) -> None:
    report, after = edited(base, tmp_path, layers="1", k=2, channel=channel, retain=0.25, compute_dtype="float64")
    for number, record in enumerate(report.heads):
        query, key = exact(base, 1, number)
        wanted = oracle.channel_query(query, key, channel, 2, 0.25)
        assert_close(head(after, 1, number), wanted.query)
        assert record.unrealized_share == pytest.approx(wanted.unrealized_share, rel=1e-6)
        assert record.leak == pytest.approx(wanted.leak, rel=1e-6)


def test_the_full_channel_has_neither_unrealized_share_nor_leak(base: Path, tmp_path: Path) -> None:
    report, _ = edited(base, tmp_path, layers="1")
    head = report.heads[0]
    assert (head.unrealized_share, head.leak, head.scale, head.key_bias_effect) == (None, None, None, None)


@pytest.mark.parametrize("control", ["index", "norm"])
def test_controls_depend_on_their_seed(base: Path, tmp_path: Path, control: Any) -> None:
    _, first = edited(base, tmp_path, layers="1", k=2, control=control, seed=1)
    _, again = edited(base, tmp_path, layers="1", k=2, control=control, seed=1)
    _, other = edited(base, tmp_path, layers="1", k=2, control=control, seed=2)
    _, with_other_layers = edited(base, tmp_path, layers="all", k=2, control=control, seed=1)
    _, fewer_heads = edited(base, tmp_path, layers="1", heads="1,3", k=2, control=control, seed=1)
    _, edit = edited(base, tmp_path, layers="1", k=2)
    name = query_name(1)
    assert same_bits(first[name], again[name])
    assert same_bits(first[name], with_other_layers[name])
    for number in (1, 3):
        np.testing.assert_allclose(head(first, 1, number), head(fewer_heads, 1, number), rtol=1e-6, atol=1e-7)
    for different in (other, edit):
        for number in range(HEADS):
            assert np.abs(head(first, 1, number) - head(different, 1, number)).max() > 1e-3


@pytest.mark.parametrize("asked", [{"k": 5}, {"energy": 1.0}, {"k": 9, "channel": "symmetric"}])
def test_a_control_that_cannot_match_is_refused_without_output(
    base: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="no index-matched control exists; use at most half of the modes") as caught:
        edited(base, tmp_path, layers="1", control="index", **asked)
    assert caught.value.where.startswith("layer 1")
    # A norm-matched control exists only in the full channel, and of an edit that leaves a mode.
    assert ("--control norm" in caught.value.remedy) == (asked == {"k": 5})
    assert not (tmp_path / "edited").exists()
    edited(base, tmp_path, layers="1", control="index", k=HEAD_SIZE // 2)


@pytest.mark.parametrize("control", ["index", "norm"])
def test_controls_differ_for_every_layer_and_head(tmp_path: Path, control: Any) -> None:
    tensors = weights()
    for name in (query_name, key_name):
        tensors[name(2)] = tensors[name(1)].clone()
    for layer in (1, 2):  # heads 0 and 1 share a key head
        tensors[query_name(layer)][HEAD_SIZE : 2 * HEAD_SIZE] = tensors[query_name(layer)][:HEAD_SIZE]
    _, after = edited(write(tmp_path / "base", tensors), tmp_path, layers="1-2", k=2, control=control)
    drawn = [head(after, layer, number) for layer in (1, 2) for number in (0, 1)]
    for one in range(4):
        for other in range(one):
            assert np.abs(drawn[one] - drawn[other]).max() > 1e-3


def test_the_index_control_suppresses_other_modes(base: Path, tmp_path: Path) -> None:
    report, after = edited(base, tmp_path, layers="1", k=2, control="index", seed=3)
    for number, record in enumerate(report.heads):
        query, key = exact(base, 1, number)
        modes = oracle.modes(query.T @ key)
        left_out = [int(np.abs(modes.values - value).argmin()) for value in record.suppressed]
        assert len(set(left_out)) == 2
        assert min(left_out) >= 2
        columns = modes.left[:, left_out]
        assert_close(head(after, 1, number), query - query @ columns @ columns.T)


def test_the_norm_control_changes_the_product_as_much_as_the_edit(base: Path, tmp_path: Path) -> None:
    _, control = edited(base, tmp_path, layers="1", k=2, control="norm", compute_dtype="float64")
    _, edit = edited(base, tmp_path, layers="1", k=2, compute_dtype="float64")
    for number in range(HEADS):
        query, key = exact(base, 1, number)
        sizes = [np.linalg.norm((head(after, 1, number) - query).T @ key) for after in (control, edit)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_storage_dtype_is_kept(tmp_path: Path, dtype: str) -> None:
    base = write(tmp_path / "base", weights(dtype=getattr(torch, dtype)))
    _, after = edited(base, tmp_path, layers="1", k=2, compute_dtype="float64")
    assert after[query_name(1)].dtype == getattr(torch, dtype)
    for number in range(HEADS):
        assert_close(head(after, 1, number), oracle.projected_query(*exact(base, 1, number), 2, 0.0), dtype)


def test_float64_arithmetic_is_closer_than_float32(base: Path, tmp_path: Path) -> None:
    errors = {}
    for dtype in ("float32", "float64"):
        _, after = edited(base, tmp_path, layers="1", k=2, compute_dtype=dtype)
        wanted = oracle.projected_query(*exact(base, 1, 0), 2, 0.0)
        errors[dtype] = np.abs(head(after, 1, 0) - wanted).max()
        if dtype == "float64":
            np.testing.assert_array_equal(head(after, 1, 0), wanted.astype(np.float32).astype(np.float64))
    assert errors["float64"] < errors["float32"]


def test_the_effect_of_a_key_bias_is_reported(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(biases=True))
    report, after = edited(base, tmp_path, layers="1", k=2)
    assert any("bias" in sentence for sentence in report.warnings)
    bias = heads_of(tensors_of(base)[key_name(1).replace("weight", "bias")].unsqueeze(-1), KEY_HEADS)
    for number, record in enumerate(report.heads):
        change = head(after, 1, number) - exact(base, 1, number)[0]
        assert record.key_bias_effect == pytest.approx(np.linalg.norm(change.T @ bias[number // GROUP]), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": 2**64},
        {"energy": 0.0},
        {"energy": 1.5},
        {"energy": float("nan")},
        {"retain": 1.0},
        {"retain": -0.1},
        {"retain": float("nan")},
        {"channel": "both"},
        {"control": "random"},
        {"control": "norm", "channel": "symmetric"},
        {"seed": -1},
        {"seed": 2**64},
        {"compute_dtype": "float16"},
        {"device": "tpu"},
        {"device": "cuda:77"},
        {"layout": "zip"},
        {"link": "junction"},
        {"layers": "3"},
        {"heads": "4"},
        {"layers": 1.5},
        {"heads": [0, None]},
        {"k": 2.0},
        {"k": True},
        {"energy": True},
        {"retain": "0.5"},
    ],
    ids=str,
)
def test_invalid_options_are_refused(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        steer(base, out=tmp_path / "edited", **{"layers": "1", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_numbers_of_numpy_are_accepted(base: Path, tmp_path: Path) -> None:
    report, found = edited(base, tmp_path, k=np.int64(2), seed=np.int64(1), retain=np.float32(0.5))
    same, expected = edited(base, tmp_path, k=2, seed=1, retain=0.5)
    assert report.manifest == same.manifest
    assert all(same_bits(found[name], expected[name]) for name in expected)


def test_more_modes_than_a_head_has_means_all_modes(base: Path, tmp_path: Path) -> None:
    report, found = edited(base, tmp_path, k=2**64 - 1)
    assert verify(report.out, base=str(base)).mismatches == ()
    _, expected = edited(base, tmp_path, k=HEAD_SIZE)
    assert all(same_bits(found[name], expected[name]) for name in expected)


def test_an_unavailable_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> None:
        raise RuntimeError("Expected one of cpu, cuda, … device type: bogus\nand much more")

    monkeypatch.setattr(accelerate, "PartialState", state)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"cannot be chosen: Expected one of .* bogus; name one with --device"):
        choose_device("auto")
