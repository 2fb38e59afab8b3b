"""Test the mathematics of DSCR against loops, and the figures behind its warning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.plugins.dscr.mixing import (
    Kernel,
    effective_tokens,
    mixed,
    mixing_weights,
    standardized,
    variance,
    without_lost,
)
from tests.plugins.dscr import dscr_oracle as oracle


def places_of(rows: int, columns: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(2, 5),
    kernel=st.builds(Kernel, *[st.floats(0.3, 2.0)] * 4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_weights_and_mix_equal_the_formulas(rows: int, columns: int, kernel: Kernel, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    depth = (torch.randn(rows * columns) * scale).double()
    places = places_of(rows, columns)
    states = torch.randn(rows * columns, 2, 3)
    expected = oracle.weights(
        depth.tolist(),
        places.tolist(),
        kernel.depth_sigma,
        kernel.place_sigma,
        kernel.depth_exponent,
        kernel.place_exponent,
    )
    weights = mixing_weights(depth, places, kernel)
    close(weights, expected)
    by_head = mixed(weights[None], states[None])[0].transpose(0, 1)
    close(by_head, [oracle.mix(expected, head) for head in states.transpose(0, 1).tolist()])
    assert effective_tokens(weights).item() == pytest.approx(oracle.effective_tokens(expected), rel=1e-4)


def test_depth_is_standardized_over_the_grid() -> None:
    depth = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    close(standardized(depth), oracle.z_scores(depth.tolist()))
    close(standardized(7 * depth + 100), oracle.z_scores(depth.tolist()), 1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_constant_depth_is_standardized_to_zero(value: float) -> None:
    assert standardized(torch.full((49,), value)).tolist() == [0.0] * 49


def test_a_grid_of_one_token_is_unchanged() -> None:
    assert mixing_weights(torch.tensor([2.0]), torch.zeros(1, 2), Kernel()).tolist() == [[1.0]]


def test_a_token_beyond_every_kernel_is_unchanged() -> None:
    weights = mixing_weights(torch.tensor([0.0, 0.0, 1e4]), torch.tensor([[0, 0], [0, 1], [900, 900]]), Kernel())
    close(weights, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_variance_is_over_tokens_within_heads() -> None:
    states = torch.randn(10, 3, 4)
    expected = sum(((head - head.mean(0)) ** 2).sum().item() for head in states.unbind(1))
    assert variance(states).item() == pytest.approx(expected, rel=1e-5)
    assert variance(states + 100 * torch.randn(1, 3, 4)).item() == pytest.approx(expected, rel=1e-3)


def test_the_remaining_tokens_of_a_grid_are_mixed_with_each_other() -> None:
    depth, places = torch.randn(12), places_of(3, 4)
    kept = torch.tensor([4, 5, 7, 11])
    expected = oracle.weights(depth[kept].tolist(), places[kept].tolist())
    close(without_lost(mixing_weights(depth, places, Kernel()), kept), expected)
    assert without_lost(mixing_weights(depth, places, Kernel()), kept[:1]).tolist() == [[1.0]]


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the depth of a floor of 24 × 24 tokens with an object, and keys of which half follow the depth."""
    depth = torch.linspace(0, 1, 24)[:, None].repeat(1, 24)
    depth[8:18, 8:16] = 0.9
    torch.manual_seed(0)
    depth = depth.reshape(-1)
    along = standardized(depth)[:, None] * torch.randn(4, 1, 64)
    return depth, (along + torch.randn(4, 576, 64)).transpose(0, 1)


@pytest.mark.parametrize(
    ("how", "tokens", "kept"),
    [("range 1", 556, 0.015), ("range 5", 246, 0.39), ("z-scores", 344, 0.28)],
)
def test_the_published_kernel_nearly_averages_the_image(how: str, tokens: int, kept: float) -> None:
    """Use depth in [0, 1]; docs/plugins.md has this table."""
    depth, keys = scene()
    depth = {"range 1": depth, "range 5": 5 * depth, "z-scores": standardized(depth)}[how]
    weights = mixing_weights(depth, places_of(24, 24), Kernel())
    assert effective_tokens(weights).item() == pytest.approx(tokens, abs=1)
    assert (variance(mixed(weights[None], keys[None])[0]) / variance(keys)).item() == pytest.approx(kept, abs=0.01)
