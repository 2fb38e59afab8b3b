"""Test edits of weights of any scale, in every storage dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.spectral.edit import suppress
from qkedit.spectral.factors import NonFiniteWeightError, factor
from qkedit.spectral.product import QKProduct
from qkedit.spectral.suppression import Channel, Control, Suppression
from tests.spectral import oracle

HEADS, KEY_HEADS, HEAD_SIZE, HIDDEN = 4, 2, 8, 32
# Powers of ten; float16 has full precision only between the smaller ones.
STORED_SCALES = {
    torch.float32: (-30, 30),
    torch.bfloat16: (-30, 30),
    torch.float16: (-3, 3),
}


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(STORED_SCALES)),
    channel=st.sampled_from(["full", "symmetric", "antisymmetric"]),
    control=st.sampled_from(["none", "index"]),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_weights_of_any_scale_are_edited_accurately(
    dtype: torch.dtype, channel: Channel, control: Control, places: tuple[float, float]
) -> None:
    """Compare float32 with a dense SVD in float64, relative to the weights."""
    low, high = STORED_SCALES[dtype]
    scales = [10.0 ** (low + place * (high - low)) for place in places]
    generator = torch.Generator().manual_seed(3)
    query, key = (
        (torch.randn(heads, HEAD_SIZE, HIDDEN, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for heads, scale in zip((HEADS, KEY_HEADS), scales, strict=True)
    )
    product = QKProduct(query, key)
    edit = suppress(product, Suppression(k=2, channel=channel, control=control))
    edited, moved = edit.update.apply(product, torch.float32)
    requested = edit.update.requested(product)
    for head in range(HEADS):
        before, keys = query[head].double().numpy(), key[head // (HEADS // KEY_HEADS)].double().numpy()
        modes = oracle.modes((before / scales[0]).T @ (keys / scales[1]), channel)
        count = int(edit.counts[head])
        values = edit.suppressed[head, :count].numpy() / (scales[0] * scales[1])
        numbers = [int(np.argmin(np.abs(modes.values - value))) for value in values]
        assert len(set(numbers)) == 2
        if control == "none":
            assert sorted(numbers) == [0, 1]
        columns = [number * modes.width + place for number in numbers for place in range(modes.width)]
        cut = (modes.left[:, columns] * np.repeat(modes.values[numbers], modes.width)) @ modes.right[:, columns].T
        change = -(cut @ np.linalg.pinv(keys / scales[1])).T * scales[0]
        size = np.linalg.norm(before / scales[0]) * scales[0]
        tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        off = np.linalg.norm((edited[head].double().numpy() - before - change) / size)
        assert off < tolerance * (1 + np.linalg.norm(change / size))
        realised = np.linalg.norm((edited[head].double().numpy() - before) / size)
        assert moved[head].item() == pytest.approx(realised, rel=1e-4)
        assert requested[head].item() == pytest.approx(np.linalg.norm(change / size), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-140, 1e-155, 1e-160, 1e-250, 1e140])
def test_factors_of_weights_with_extreme_squares_are_accurate(scale: float) -> None:
    weights = torch.randn(2, HEAD_SIZE, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(
        factor(weights * scale, "query") / scale, factor(weights, "query"), rtol=1e-11, atol=1e-12
    )


def test_weights_with_overflowing_squares_are_refused_with_the_reason() -> None:
    with pytest.raises(NonFiniteWeightError, match="or numbers beyond 1e150"):
        factor(torch.full((1, HEAD_SIZE, HIDDEN), 1e160, dtype=torch.float64), "query")
