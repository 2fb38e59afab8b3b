"""Test weights that are zero, rank-deficient, not finite or out of range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qkedit.api.editing import steer
from qkedit.checkpoint.manifest_file import HeadEdit
from qkedit.errors import QkeditError
from qkedit.spectral.suppression import Channel, Suppression
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.plan import plan_for
from qkedit.steering.steer_options import SteerOptions
from tests.spectral import oracle
from tests.steering.checkpoints import (
    HEAD_SIZE,
    HEADS,
    heads_of,
    key_name,
    query_name,
    same_bits,
    tensors_of,
    weights,
    write,
)

QUERY, KEY = query_name(1), key_name(1)
KEY_BIAS = KEY.replace("weight", "bias")


def checkpoint(directory: Path, change: Callable[[dict[str, Tensor]], object], **made: object) -> Path:
    tensors = weights(**made)  # type: ignore[arg-type]
    change(tensors)
    return write(directory, tensors)


def refusal(base: Path, tmp_path: Path, **options: object) -> str:
    """Return the error for an edit of layer 1, after checking that nothing was written."""
    with pytest.raises(QkeditError) as error:
        steer(base, out=tmp_path / "edited", **{"layers": "1", "fsync": False, **options})  # type: ignore[arg-type]
    assert error.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [base.name]
    return str(error.value)


def test_a_zero_head_keeps_its_bits_and_others_are_edited(tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY][:HEAD_SIZE] = -0.0  # query head 0 of key head 0
        tensors[KEY][HEAD_SIZE:] = 0.0  # key head 1, which query heads 2 and 3 read

    base = checkpoint(tmp_path / "base", zero)
    report = steer(base, out=tmp_path / "edited", layers="1", k=2, fsync=False)
    before, after = (heads_of(tensors_of(directory)[QUERY], HEADS) for directory in (base, tmp_path / "edited"))
    old, new = (tensors_of(directory)[QUERY].unflatten(0, (HEADS, -1)) for directory in (base, tmp_path / "edited"))
    for number in (0, 2, 3):
        assert same_bits(old[number], new[number])
        assert report.heads[number] == HeadEdit(
            head=number, key_head=number // 2, suppressed=(), energy_removed=0.0, gap=None, relative_change=0.0
        )
    key = heads_of(tensors_of(base)[KEY], 2)[0]
    np.testing.assert_allclose(after[1], oracle.projected_query(before[1], key, 2, 0.0), atol=1e-6)
    assert any("3 heads have fewer than 2 modes" in sentence for sentence in report.warnings)


def test_a_rank_deficient_head_loses_all_its_modes(tmp_path: Path) -> None:
    def flatten(tensors: dict[str, Tensor]) -> None:
        tensors[KEY][2:HEAD_SIZE] = tensors[KEY][:1]  # key head 0 of rank 2

    base = checkpoint(tmp_path / "base", flatten, dtype=torch.float64)
    report = steer(base, out=tmp_path / "edited", layers="1", k=4, fsync=False)
    assert [len(head.suppressed) for head in report.heads] == [2, 2, 4, 4]
    before, after = (heads_of(tensors_of(directory)[QUERY], HEADS) for directory in (base, tmp_path / "edited"))
    key = heads_of(tensors_of(base)[KEY], 2)[0]
    for number in (0, 1):
        np.testing.assert_allclose(after[number], oracle.projected_query(before[number], key, 2, 0.0), atol=1e-12)
        assert np.abs(after[number] @ key.T @ key).max() > 0, "the part that keys do not read must be unchanged"
        np.testing.assert_allclose((after[number].T @ key), 0, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [QUERY, KEY, KEY_BIAS])
@pytest.mark.parametrize("channel", ["full", "antisymmetric"])
def test_nan_and_infinity_are_refused_with_the_tensor(tmp_path: Path, name: str, value: float, channel: str) -> None:
    base = checkpoint(tmp_path / "base", lambda tensors: tensors[name][3].fill_(value), biases=True)
    sentence = refusal(base, tmp_path, channel=channel)
    assert f"tensor {name}: the weights hold NaN, infinity or numbers beyond 1e150" in sentence


def test_only_needed_tensors_are_named(tmp_path: Path) -> None:
    """Query head 0 is invalid but not selected; the key head of query head 3 is invalid too."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY][0, 0] = float("nan")
        tensors[KEY][-1, 0] = float("nan")

    base = checkpoint(tmp_path / "base", spoil)
    assert f"tensor {KEY}:" in refusal(base, tmp_path, heads="3")


def test_invalid_weights_of_other_layers_are_ignored(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", lambda tensors: tensors[QUERY].fill_(float("nan")))
    steer(base, out=tmp_path / "edited", layers="0,2", fsync=False)
    assert same_bits(tensors_of(base)[QUERY], tensors_of(tmp_path / "edited")[QUERY])


def test_a_layer_of_zeros_is_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", lambda tensors: tensors[QUERY].zero_())
    for control in ("none", "index", "norm"):
        sentence = refusal(base, tmp_path, layers="all", k=2, control=control)
        assert f"tensor {QUERY}: the chosen heads have no modes to suppress" in sentence
        assert "leave out layer 1 with --layers" in sentence


def test_an_edit_below_the_resolution_of_storage_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(dtype=torch.bfloat16))
    for layout in ("full", "delta"):
        sentence = refusal(base, tmp_path, retain=1 - 1e-6, layout=layout)
        assert "head 0 would change by 0 of its norm instead of" in sentence
        assert "since BF16 cannot hold the difference" in sentence


def test_an_edit_that_is_mostly_rounding_is_refused(tmp_path: Path) -> None:
    """Some values change by a whole step of the storage dtype and others do not change."""
    base = write(tmp_path / "base", weights(dtype=torch.bfloat16))
    assert "cannot hold the difference" in refusal(base, tmp_path, retain=1 - 1e-3)
    steer(base, out=tmp_path / "edited", layers="1", retain=0.9, fsync=False)


def test_an_edit_beyond_the_range_of_its_storage_is_refused(tmp_path: Path) -> None:
    """A norm-matched control may change weights strongly; the largest float16 is 65504."""

    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY] = (tensors[QUERY].float() * 60000 / tensors[QUERY].float().abs().max()).half()
        tensors[KEY].mul_(torch.logspace(0, -3, HEAD_SIZE).repeat(2).unsqueeze(1).half())

    base = checkpoint(tmp_path / "base", enlarge, dtype=torch.float16)
    sentence = refusal(base, tmp_path, control="norm", k=2)
    assert f"tensor {QUERY}: the edited weights exceed the range of F16" in sentence


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-18, 1e10, 1e18, 1e20, 1e30])
def test_large_and_small_float32_weights_are_edited_accurately(tmp_path: Path, scale: float) -> None:
    def rescale(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY].mul_(scale)
        tensors[KEY].mul_(scale)

    base = checkpoint(tmp_path / "base", rescale)
    report = steer(base, out=tmp_path / "edited", layers="1", k=2, fsync=False)
    query, key = (heads_of(tensors_of(base)[name], count)[0] for name, count in ((QUERY, HEADS), (KEY, 2)))
    after = heads_of(tensors_of(tmp_path / "edited")[QUERY], HEADS)[0]
    np.testing.assert_allclose(after, oracle.projected_query(query, key, 2, 0.0), atol=1e-6 * np.abs(query).max())
    moved = np.linalg.norm(after - query) / np.linalg.norm(query)
    assert report.heads[0].relative_change == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("channel", ["full", "symmetric", "antisymmetric"])
def test_the_factors_of_an_edit_give_its_weights(tmp_path: Path, channel: Channel) -> None:
    base = write(tmp_path / "base", weights())
    plan = plan_for(str(base), SteerOptions("1", "0,2-3", Suppression(2, channel=channel), device="cpu"))
    (edited,) = edited_weights(stored_layers(plan), plan, torch.device("cpu"), factored=True)
    before, after = (tensor.double().unflatten(0, (HEADS, -1)) for tensor in (tensors_of(base)[QUERY], edited.tensor))
    expected = before.clone()
    assert edited.factored is not None
    assert edited.factored.error == 0
    for head, change in edited.factored.heads.items():
        assert change.rank == (4 if channel == "antisymmetric" else 2)
        expected[head] += change.dense()
        for factor in (change.left, change.right):
            # A view of a larger tensor would keep that tensor in memory.
            assert factor.untyped_storage().nbytes() <= 2 * factor.nbytes
    assert list(edited.factored.heads) == [0, 2, 3]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


def test_heads_without_modes_have_no_factors(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", lambda tensors: tensors[QUERY][:HEAD_SIZE].zero_())
    plan = plan_for(str(base), SteerOptions("1", device="cpu"))
    (edited,) = edited_weights(stored_layers(plan), plan, torch.device("cpu"), factored=True)
    assert edited.factored is not None
    assert sorted(edited.factored.heads) == [1, 2, 3]
    (plain,) = edited_weights(stored_layers(plan), plan, torch.device("cpu"))
    assert plain.factored is None
    assert same_bits(plain.tensor, edited.tensor)
