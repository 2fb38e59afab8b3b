"""Test ranks, row spaces and energies of changes against their definitions."""

from __future__ import annotations

import pytest
import torch

from qkedit.spectral.analysis import principal_angles
from qkedit.spectral.changes.figures import energy_removed, rounding_noise, row_spaces
from tests.spectral.test_combination import random


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 3, 16])
@pytest.mark.parametrize("columns", [48, 1024])
def test_rounding_does_not_add_to_the_rank_of_a_change(dtype: torch.dtype, rank: int, columns: int) -> None:
    """The error of rounding has full rank; heads and columns may have very different sizes."""
    sizes = torch.logspace(-2, 1, columns, dtype=torch.float64) * torch.tensor([1.0, 1e-2]).double()[:, None, None]
    before = (random(2, 16, columns, seed=rank) * sizes).to(dtype)
    _, _, right = torch.linalg.svd(before.double(), full_matrices=False)
    removed = before.double() @ right[:, :rank].mT @ right[:, :rank]
    after = (before.double() - removed).to(dtype)
    # A change of rounding only is not an edit: the weights of rank 0 equal those before.
    spaces = row_spaces(after.double() - before.double(), rounding_noise(before))
    assert [space.shape[1] for space in spaces] == [rank, rank]
    for head, space in enumerate(spaces):
        assert torch.allclose(space.mT @ space, torch.eye(rank).double(), atol=1e-10)
        angles = principal_angles(space, right[head, :rank].mT)
        assert angles.numel() == rank
        assert float(angles.max() if rank else 0) < {2: 0.1, 4: 1e-4, 8: 1e-10}[dtype.itemsize]


def test_a_change_of_rounding_only_has_rank_zero() -> None:
    exact = random(3, 32, 512, seed=1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        noise = rounding_noise(exact.to(dtype))
        error = exact.to(dtype).double() - exact
        assert [space.shape[1] for space in row_spaces(error, noise)] == [0, 0, 0]
        assert (noise < 2 * torch.linalg.matrix_norm(error, 2)).all()  # the bound is not much too large


def test_energy_equals_that_of_the_dense_product() -> None:
    before, after, keys = (random(3, 4, 7, seed=seed) for seed in (1, 2, 3))
    before[2] = after[2] = 0
    dense = [torch.linalg.matrix_norm(query.mT @ keys).square() for query in (before, after)]
    expected = [*(1 - dense[1] / dense[0])[:2].tolist(), 0]
    assert energy_removed(before, after, keys).tolist() == pytest.approx(expected)
