"""Test edits restricted to queries orthogonal to protected directions, against dense products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.controls import ModeDraws
from qkedit.spectral.restriction import restricted
from qkedit.spectral.suppression import Suppression
from tests.spectral.oracle import Matrix, modes
from tests.spectral.weights import SOUND_KINDS, as_product, layer

GROUP = 2  # query heads per key head in `layer`


def protected_directions(query: Matrix, seen: Matrix, directions: int) -> Matrix:
    """Return B `[D, r]`, the principal directions of the columns of `W_qᵀ seen`."""
    return np.linalg.svd(query.T @ seen, full_matrices=False)[0][:, :directions]


def written_out(query: Matrix, key: Matrix, basis: Matrix, count: int, retain: float) -> tuple[Matrix, Matrix]:
    """Return `W_q (I − (1−ρ) U_k U_kᵀ)` with U from the dense restricted product, and the share of energy removed."""
    width = query.shape[1]
    rest = (np.eye(width) - basis @ basis.T) @ query.T @ key
    left = modes(rest).left[:, :count]
    edited = query @ (np.eye(width) - (1 - retain) * left @ left.T)
    before, after = (np.linalg.norm(rows.T @ key) ** 2 for rows in (query, edited))
    return edited, 1 - after / before


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(SOUND_KINDS),
    directions=st.integers(1, 3),
    count=st.integers(1, 2),
    retain=st.sampled_from((0.0, 0.4)),
)
@settings(max_examples=40)
def test_the_edit_equals_that_of_the_dense_restricted_product(
    seed: int, kind: str, directions: int, count: int, retain: float
) -> None:
    product, query, key = as_product(*layer(seed, query_kinds=(kind,), key_kinds=("random", "spiked")))
    seen = np.random.default_rng(seed).standard_normal((len(query), query.shape[1], 9))
    moments = torch.from_numpy(seen @ seen.transpose(0, 2, 1))
    edit = restricted(product, moments, directions).suppress(Suppression(count, retain=retain))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head, rows in enumerate(query):
        if edit.gap[head] < 1.001:  # the dominant modes are arbitrary there
            continue
        basis = protected_directions(rows, seen[head], directions)
        dense, removed = written_out(rows, key[head // GROUP], basis, count, retain)
        scale = np.linalg.norm(rows)
        assert np.linalg.norm(edited[head] - dense) < 1e-5 * scale
        assert np.linalg.norm((edited[head] - rows) @ basis) < 1e-7 * scale
        assert edit.energy_removed[head] == pytest.approx(removed, abs=1e-6)


@pytest.mark.parametrize("control", ["index", "norm"])
def test_controls_do_not_change_protected_directions(control: str) -> None:
    product, query, _ = as_product(*layer(3))
    seen = np.random.default_rng(4).standard_normal((len(query), query.shape[1], 9))
    moments = torch.from_numpy(seen @ seen.transpose(0, 2, 1))
    suppression = Suppression(2, control=control, seed=5)  # type: ignore[arg-type]
    within = restricted(product, moments, 2)
    edit = within.suppress(suppression, ModeDraws(5, 7, (0, 1, 2, 3)))
    plain = within.suppress(Suppression(2))
    edited, moved = edit.update.apply(product, torch.float64)
    assert (moved > 0.01).all()
    for head, rows in enumerate(query):
        basis = protected_directions(rows, seen[head], 2)
        assert np.linalg.norm((edited[head].numpy() - rows) @ basis) < 1e-9
    if control == "norm":  # the same change of the product as by the edit
        changes = [
            (update.apply(product, torch.float64)[0] - product.query).mT @ product.key[product.key_head]
            for update in (edit.update, plain.update)
        ]
        sizes = [torch.linalg.matrix_norm(change) for change in changes]
        assert torch.allclose(sizes[0], sizes[1], rtol=1e-8)


def test_a_head_without_protected_directions_is_edited_as_usual() -> None:
    product, query, key = as_product(*layer(1, query_kinds=("random", "zero")))
    nothing = torch.zeros(len(query), query.shape[1], query.shape[1])
    edit = restricted(product, nothing, 2).suppress(Suppression(2))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in (0, 2):
        left = modes(query[head].T @ key[head // GROUP]).left[:, :2]
        assert np.allclose(edited[head], query[head] @ (np.eye(query.shape[2]) - left @ left.T))
    assert not edited[1].any()


def test_with_all_logits_protected_no_energy_remains_to_edit() -> None:
    product, query, _ = as_product(*layer(2))
    size = query.shape[1]
    moments = torch.eye(size, dtype=torch.float64).expand(len(query), -1, -1)
    within = restricted(product, moments, size)
    assert torch.allclose(within.kept_energy, torch.zeros(len(query), dtype=torch.float64), atol=1e-12)
    assert (within.product.modes.values < 1e-9).all()
