"""Make weights for tests of the spectral code: random, structured, ill-conditioned, rank-deficient and zero heads."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from qkedit.spectral.product import QKProduct
from tests.pretended_devices import placed
from tests.spectral.oracle import Matrix


def orthonormal(random: np.random.Generator, rows: int, columns: int) -> Matrix:
    """Return `rows` orthonormal vectors as rows (or as columns if there are fewer columns)."""
    tall = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return tall if rows >= columns else tall.T


def with_spectrum(random: np.random.Generator, values: Matrix, hidden: int) -> Matrix:
    """Return a head `[d_h, hidden]` with these singular values and random singular vectors."""
    size = len(values)
    return orthonormal(random, size, size) @ (values[:, None] * orthonormal(random, size, hidden))


def head(random: np.random.Generator, kind: str, size: int, hidden: int) -> Matrix:
    """Return one head's weights `[size, hidden]` of the named kind."""
    if kind == "zero":
        return np.zeros((size, hidden))
    if kind == "deficient":
        values = np.linspace(2, 1, size) * (np.arange(size) < max(1, size // 2))
    elif kind == "spiked":  # a few dominant directions above a flat bulk, as in trained heads
        values = np.concatenate([np.linspace(40, 20, max(1, size // 4)), np.linspace(1.5, 1, size)])[:size]
    elif kind == "condition 1e3":
        values = np.logspace(0, -3, size)
    elif kind == "condition 1e6":
        values = np.logspace(0, -6, size)
    else:
        return random.standard_normal((size, hidden)) / np.sqrt(hidden)
    return with_spectrum(random, values, hidden)


SOUND_KINDS = ("random", "spiked", "condition 1e3", "condition 1e6")
KINDS = (*SOUND_KINDS, "deficient", "zero")


def layer(
    seed: int,
    heads: int = 4,
    key_heads: int = 2,
    size: int = 6,
    hidden: int = 24,
    query_kinds: tuple[str, ...] = ("random",),
    key_kinds: tuple[str, ...] = ("random",),
) -> tuple[Matrix, Matrix]:
    """Return `[H, d_h, D]` and `[H_kv, d_h, D]`, with the kinds in turn."""
    random = np.random.default_rng(seed)
    query = [head(random, query_kinds[i % len(query_kinds)], size, hidden) for i in range(heads)]
    key = [head(random, key_kinds[i % len(key_kinds)], size, hidden) for i in range(key_heads)]
    return np.stack(query), np.stack(key)


def as_product(query: Matrix, key: Matrix, dtype: torch.dtype = torch.float64) -> tuple[QKProduct, Matrix, Matrix]:
    """Return the product in `dtype`, and the weights that it then holds in float64."""
    stored = torch.from_numpy(query).to(dtype), torch.from_numpy(key).to(dtype)
    return QKProduct(*stored), stored[0].double().numpy(), stored[1].double().numpy()


def on_mps(product: QKProduct) -> QKProduct:
    """Return the product on a device without float64, for use with `PretendedDevices`."""
    mps = torch.device("mps")
    return QKProduct(placed(product.query, mps), placed(product.key, mps), product.key_head)


@st.composite
def layers(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> tuple[Matrix, Matrix]:
    """Generate layers of small shapes, grouped or not, with heads of any kind."""
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = 2 * draw(st.integers(1, 4))
    hidden = draw(st.integers(2 * size, 32))
    heads = key_heads * group
    return layer(
        draw(st.integers(0, 2**32 - 1)),
        heads,
        key_heads,
        size,
        hidden,
        tuple(draw(st.lists(st.sampled_from(kinds), min_size=heads, max_size=heads))),
        tuple(draw(st.lists(st.sampled_from(kinds), min_size=key_heads, max_size=key_heads))),
    )
