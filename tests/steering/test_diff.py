"""Test differences of two checkpoints against numpy's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qkedit.api.editing import steer
from qkedit.steering.diff import TensorDifference, diff
from qkedit.steering.engine import reading
from tests.cli.command import qkedit
from tests.steering.checkpoints import key_name, query_name, tensors_of, weights, write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("piece", [16 << 20, 100])
def test_figures_equal_those_of_numpy(
    tmp_path: Path, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_PIECE", piece // dtype.itemsize * dtype.itemsize)
    base = write(tmp_path / "base", weights(dtype=dtype))
    steer(base, out=tmp_path / "edited", layers="1", heads="0", k=1, fsync=False)
    differences, compared = diff(str(base), str(tmp_path / "edited"))
    a, b = (tensors_of(directory)[query_name(1)].double().numpy() for directory in (base, tmp_path / "edited"))
    (found,) = differences
    assert compared == len(weights())
    assert (found.name, found.what) == (query_name(1), "changed")
    assert found.relative_change == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    assert found.largest_change == np.abs(a - b).max()
    assert found.elements_changed == (a != b).mean()
    assert 0 < found.elements_changed <= 0.25


def test_equal_checkpoints_with_different_shards_do_not_differ(tmp_path: Path) -> None:
    for shards in (1, 2, 5):
        write(tmp_path / str(shards), weights(), shards=shards)
    assert diff(str(tmp_path / "1"), str(tmp_path / "5")) == ([], len(weights()))
    assert diff(str(tmp_path / "5"), str(tmp_path / "2"))[0] == []


def test_missing_tensors_and_other_dtypes_or_shapes_are_differences(tmp_path: Path) -> None:
    ours, theirs = weights(), weights()
    ours["ours"], theirs["theirs"] = torch.ones(1), torch.ones(1)
    theirs[key_name(0)] = theirs[key_name(0)].T
    theirs[key_name(1)] = theirs[key_name(1)].half()
    differences, compared = diff(str(write(tmp_path / "a", ours)), str(write(tmp_path / "b", theirs)))
    assert compared == len(weights()) + 2
    assert {found.name: found.what for found in differences} == {
        "ours": "only in A",
        "theirs": "only in B",
        key_name(0): "dtype or shape",
        key_name(1): "dtype or shape",
    }
    assert [found.name for found in differences] == sorted(found.name for found in differences)


def test_values_that_are_not_finite_have_no_figures(tmp_path: Path) -> None:
    """Undefined figures are None, so that the result is valid JSON."""
    ours, theirs = weights(), weights()
    for tensors, number in ((ours, 0), (theirs, 1)):
        tensors["counts"] = torch.tensor([number])
        tensors["from zero"] = torch.tensor([0.0, float(number)])
        tensors["from nan"] = torch.tensor([float("nan"), float(number)])
        tensors["to infinity"] = torch.tensor([1.0, float("inf") if number else 1.0])
        tensors["empty"] = torch.empty(0)
        tensors["signs of zero"] = torch.tensor([0.0, -0.0 if number else 0.0, 1.0])
    differences, _ = diff(str(write(tmp_path / "a", ours)), str(write(tmp_path / "b", theirs)))
    found = {difference.name: difference for difference in differences}
    assert set(found) == {"counts", "from zero", "from nan", "to infinity", "signs of zero"}
    assert found["counts"] == TensorDifference("counts", "changed")
    assert found["from zero"] == TensorDifference("from zero", "changed", None, 1.0, 0.5)
    assert found["from nan"] == TensorDifference("from nan", "changed", None, None, 0.5)
    assert found["to infinity"] == TensorDifference("to infinity", "changed", None, None, 0.5)
    assert found["signs of zero"] == TensorDifference("signs of zero", "changed", 0.0, 0.0, 1 / 3)
    json.dumps([vars(difference) for difference in differences], allow_nan=False)


def test_bytes_read_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", weights())
    write(tmp_path / "b", weights())
    counts: list[int] = []
    diff(str(tmp_path / "a"), str(tmp_path / "b"), on_bytes=counts.append)
    assert sum(counts) == sum(tensor.nbytes for tensor in weights().values())


def test_figures_beyond_float64_are_left_out(tmp_path: Path) -> None:
    ours, theirs = weights(), weights()
    for name, number, other in (
        ("from tiny", 1e-160, 1e150),
        ("far apart", 1e-100, 1e100),
        ("huge", 1e200, 1e200),
        ("to huge", 1.0, 1e200),
    ):
        ours[name] = torch.tensor([number, 0.0], dtype=torch.float64)
        theirs[name] = torch.tensor([other, 1.0], dtype=torch.float64)
    differences, _ = diff(str(write(tmp_path / "a", ours)), str(write(tmp_path / "b", theirs)))
    found = {difference.name: difference for difference in differences}
    assert found["from tiny"] == TensorDifference("from tiny", "changed", None, 1e150, 1.0)
    assert found["far apart"].relative_change == pytest.approx(1e200)
    assert found["huge"] == TensorDifference("huge", "changed", None, 1.0, 0.5)
    assert found["to huge"] == TensorDifference("to huge", "changed", None, None, 1.0)
    json.dumps([vars(difference) for difference in differences], allow_nan=False)
    printed = qkedit("diff", tmp_path / "a", tmp_path / "b").stdout
    assert "inf" not in printed
    assert "1e+200 times" in printed
