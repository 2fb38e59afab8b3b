"""Test random-mode controls: their matched quantity, the modes they are drawn from, and reproducibility."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qkedit.spectral.controls import ModeDraws, UnmatchedControlError
from qkedit.spectral.edit import suppress
from qkedit.spectral.product import QKProduct
from qkedit.spectral.suppression import Channel, Control, Suppression
from tests.pretended_devices import PretendedDevices
from tests.spectral import oracle
from tests.spectral.weights import KINDS, SOUND_KINDS, as_product, layer, on_mps


def product_change(product: QKProduct, edited: torch.Tensor, head: int) -> np.ndarray:
    keys = product.key[product.key_head[head]].numpy()
    return (edited[head].numpy() - product.query[head].numpy()).T @ keys


@pytest.mark.parametrize("kind", SOUND_KINDS)
@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_index_control_suppresses_other_modes(kind: str, retain: float) -> None:
    product, query, key = as_product(*layer(40, size=8, query_kinds=(kind,)))
    edit = suppress(product, Suppression(k=3, control="index", retain=retain, seed=5))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in range(4):
        modes = oracle.modes(query[head].T @ key[product.key_head[head]])
        suppressed = edit.suppressed[head].numpy()
        numbers = [int(np.argmin(np.abs(modes.values[:8] - value))) for value in suppressed]
        assert len(set(numbers)) == 3
        assert min(numbers) >= 3
        left = modes.left[:, numbers]
        expected = query[head] @ (np.eye(24) - (1 - retain) * left @ left.T)
        np.testing.assert_allclose(edited[head], expected, atol=1e-7 * np.linalg.norm(query[head], 2))
        removed = (1 - retain**2) * np.sum(modes.values[numbers] ** 2) / np.sum(modes.values**2)
        np.testing.assert_allclose(edit.energy_removed[head].item(), removed, rtol=1e-6)


@pytest.mark.parametrize("channel", ["symmetric", "antisymmetric"])
@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_index_control_of_a_channel_suppresses_other_modes_of_the_channel(channel: Channel, retain: float) -> None:
    """Compare with the dense channel: `W_q + (Δ W_k⁺)ᵀ`, Δ of the drawn modes."""
    product, query, key = as_product(*layer(47, size=8))
    edit = suppress(product, Suppression(k=3, channel=channel, control="index", retain=retain, seed=5))
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    for head in range(4):
        keys = key[product.key_head[head]]
        modes = oracle.modes(query[head].T @ keys, channel)
        numbers = [int(np.argmin(np.abs(modes.values - value))) for value in edit.suppressed[head].numpy()]
        assert len(set(numbers)) == 3
        assert min(numbers) >= 3
        columns = [number * modes.width + place for number in numbers for place in range(modes.width)]
        values = np.repeat(modes.values[numbers], modes.width)
        drawn = (modes.left[:, columns] * values) @ modes.right[:, columns].T
        expected = query[head] - (1 - retain) * (drawn @ np.linalg.pinv(keys)).T
        np.testing.assert_allclose(edited[head], expected, atol=1e-9 * np.linalg.norm(expected, 2))
        removed = (1 - retain**2) * np.sum(values**2) / np.sum(np.repeat(modes.values, modes.width) ** 2)
        np.testing.assert_allclose(edit.energy_removed[head].item(), removed, rtol=1e-6)


@pytest.mark.parametrize(
    ("kinds", "suppression", "head", "taken", "left"),
    [
        (("random", "zero"), Suppression(k=3, control="index"), 0, 3, 1),  # rank 4
        (("random", "deficient"), Suppression(k=2, control="index"), 1, 2, 0),  # rank 2
        (("random", "random"), Suppression(energy=1.0, control="index"), 0, 4, 0),
        (("random", "random"), Suppression(k=5, control="index", channel="symmetric"), 0, 5, 3),  # rank 8
        (("random", "random"), Suppression(k=3, control="index", channel="antisymmetric"), 0, 3, 1),  # 4 planes
    ],
)
def test_an_index_control_that_cannot_match_is_refused(
    kinds: tuple[str, ...], suppression: Suppression, head: int, taken: int, left: int
) -> None:
    product, *_ = as_product(*layer(41, size=4, heads=2, query_kinds=kinds))
    with pytest.raises(UnmatchedControlError) as caught:
        suppress(product, suppression)
    assert (caught.value.head, caught.value.taken, caught.value.left) == (head, taken, left)


def test_the_control_of_a_head_without_modes_changes_nothing() -> None:
    product, *_ = as_product(*layer(41, size=4, query_kinds=("random", "zero", "zero", "random")))
    edit = suppress(product, Suppression(k=2, control="index"))
    assert edit.counts.tolist() == [2, 0, 0, 2]
    edited = edit.update.apply(product, torch.float64)[0]
    assert torch.equal(edited[1:3], product.query[1:3])


def test_index_control_draws_every_other_mode_equally_often() -> None:
    product, *_ = as_product(*layer(42, heads=1, key_heads=1, size=6))
    values, tally = product.modes.values[0].numpy(), np.zeros(6)
    for seed in range(400):
        drawn = suppress(product, Suppression(k=2, control="index", seed=seed)).suppressed[0].numpy()
        for value in drawn:
            tally[np.argmin(np.abs(values - value))] += 1
    assert np.all(tally[:2] == 0)
    # Each of the other four modes is expected 200 times, with a standard deviation of 10.
    assert np.all(np.abs(tally[2:] - 200) < 50)


@pytest.mark.parametrize("retain", [0.0, 0.6])
def test_norm_control_changes_the_product_as_much_as_the_edit(retain: float) -> None:
    product, query, key = as_product(*layer(43, heads=6, key_heads=3, size=8, query_kinds=KINDS))
    edit = suppress(product, Suppression(k=2, control="norm", retain=retain, seed=1))
    matched = suppress(product, Suppression(k=2, retain=retain))
    edited, target = (chosen.update.apply(product, torch.float64)[0] for chosen in (edit, matched))
    assert edit.scale is not None
    for head in range(6):
        change = product_change(product, edited, head)
        expected = np.linalg.norm(product_change(product, target, head))
        np.testing.assert_allclose(np.linalg.norm(change), expected, rtol=1e-6)
        before = query[head].T @ key[product.key_head[head]]
        energy = np.linalg.norm(before) ** 2 or 1.0
        removed = 1 - np.linalg.norm(before + change) ** 2 / energy if np.any(before) else 0.0
        np.testing.assert_allclose(edit.energy_removed[head].item(), removed, atol=1e-8)


def test_norm_control_uses_an_orthonormal_frame_in_the_row_space_of_queries() -> None:
    product, query, _ = as_product(
        *layer(44, heads=4, size=8, query_kinds=("random", "spiked", "deficient", "random"))
    )
    edit = suppress(product, Suppression(k=2, control="norm"))
    assert edit.scale is not None
    edited = edit.update.apply(product, torch.float64)[0].numpy()
    frames = edit.update.directions(product).numpy()
    for head in range(4):
        frame, scale = frames[head], float(edit.scale[head])
        np.testing.assert_allclose(frame @ frame.T, np.eye(2), atol=1e-9)
        basis = np.linalg.svd(query[head])[2][: np.linalg.matrix_rank(query[head], tol=1e-9)]
        np.testing.assert_allclose(frame @ basis.T @ basis, frame, atol=1e-9)
        np.testing.assert_allclose(edited[head], query[head] @ (np.eye(24) - scale * frame.T @ frame), atol=1e-9)


@pytest.mark.parametrize("control", ["index", "norm"])
def test_draws_depend_on_seed_layer_and_head_only(control: Control) -> None:
    query, key = layer(45, heads=6, key_heads=3, size=8)
    whole = QKProduct(torch.from_numpy(query), torch.from_numpy(key))

    def edited(product: QKProduct, seed: int, layer_number: int, heads: tuple[int, ...]) -> torch.Tensor:
        suppression = Suppression(k=2, control=control, seed=seed)
        edit = suppress(product, suppression, ModeDraws(seed, layer_number, heads))
        return edit.update.apply(product, torch.float64)[0]

    everything = edited(whole, 3, 7, tuple(range(6)))
    chosen = (5, 0, 3)
    part = QKProduct(torch.from_numpy(query[list(chosen)]), torch.from_numpy(key), torch.tensor([2, 0, 1]))
    torch.testing.assert_close(edited(part, 3, 7, chosen), everything[list(chosen)], rtol=0, atol=1e-10)
    for seed, layer_number in ((4, 7), (3, 8)):
        other = edited(whole, seed, layer_number, tuple(range(6)))
        assert sum(torch.allclose(other[head], everything[head], atol=1e-6) for head in range(6)) <= 1


def test_controls_agree_on_a_device_without_float64() -> None:
    product, *_ = as_product(*layer(46, heads=4, size=8), dtype=torch.float32)
    for control in ("index", "norm"):
        suppression = Suppression(k=2, control=control, seed=2)
        expected = suppress(product, suppression).update.apply(product)[0]
        with PretendedDevices():
            elsewhere = on_mps(product)
            found = suppress(elsewhere, suppression).update.apply(elsewhere)[0].cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
