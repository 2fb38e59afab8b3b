"""Small square factors of wide weights: `L` with `L Lᵀ = W Wᵀ`, so that no `D × D` matrix is ever formed.

A head's weight `W` is `[d_h, D]` with `D ≫ d_h`. Writing `W = L Qᵀ` with orthonormal `Q` (`[D, d_h]`), the
singular values of `W_qᵀ W_k = Q_q (L_qᵀ L_k) Q_kᵀ` are those of the `d_h × d_h` core `L_qᵀ L_k`.

There are two ways to compute `L`, and each head takes the cheaper one that is accurate for it:

* **Gram**: `G = W Wᵀ` by one batched product, then Cholesky. This squares the condition number, so `G` is
  accumulated and factored in float64, where heads with a condition number up to about 8,000 lose nothing that
  matters (the smallest singular values keep eight digits).
* **QR**: `Wᵀ = Q R`, `L = Rᵀ`. About ten times slower, and accurate to the last singular value. It is used for the
  heads whose Cholesky pivots show that they are worse conditioned, rank-deficient or zero.

Both give the lower-triangular factor with a non-negative diagonal, which is unique for full rank: random
draws expressed in its coordinates mean the same with either method and on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Projection = Literal["query", "key"]

# Float64 copies of weights are made in pieces of about this size, so that on a CPU a piece stays in the cache
# between its conversion and its product. On a GPU a whole layer is one piece.
CPU_WORKING_BYTES = 8 << 20
GPU_WORKING_BYTES = 2 << 30

# Rounding leaves an error of a few eps times the Frobenius norms in a factor or a core; this multiple is safe.
ROUNDING = 16


# Only float64 weights can exceed 1e150.
NOT_TO_BE_SQUARED = "NaN, infinity or numbers beyond 1e150"


class NonFiniteWeightError(ValueError):
    """The square of a weight is not finite; `head` is its position along the first axis of `projection`."""

    def __init__(self, head: int, projection: Projection) -> None:
        self.head = head
        self.projection = projection
        super().__init__(f"the weights of {projection} head {head} hold {NOT_TO_BE_SQUARED}")


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the widest dtype that `device` multiplies in: float64, but float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_device(weights: Tensor, device: torch.device) -> Tensor:
    """Return `weights` on `device`, or unchanged where the device does not support their dtype."""
    return weights.to(device) if weights.dtype.itemsize <= product_dtype(device).itemsize else weights


def with_float64(weights: Tensor) -> Tensor:
    """Return `weights` on a device that multiplies in float64: their own, or else the CPU."""
    return weights if product_dtype(weights.device) == torch.float64 else weights.cpu()


def heads_per_piece(weights: Tensor, dtype: torch.dtype) -> int:
    """Return the number of leading entries of `weights` (`[H, …]`) to convert to `dtype` at once."""
    budget = CPU_WORKING_BYTES if weights.device.type == "cpu" else GPU_WORKING_BYTES
    return max(1, budget // max(1, weights[0].numel() * dtype.itemsize))


def converted(piece: Tensor, buffer: Tensor) -> Tensor:
    """Convert `piece` to the dtype of `buffer`, into the first entries of its memory."""
    return buffer[: len(piece)].copy_(piece)


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ rightᵀ` over the last axis, float64: `[H, m, D] × [H, n, D] → [H, m, n]`.

    The result is on the device of `left`, or on the CPU if that device has no float64.
    """
    same = right is left
    left = with_float64(left)
    right = left if same else right.to(left.device)
    step = heads_per_piece(left, torch.float64)
    # One buffer for all conversions: the first touch of fresh memory costs more than the conversion itself.
    buffers = [
        torch.empty(step, *weights.shape[1:], dtype=torch.float64, device=weights.device)
        for weights in ((left,) if same else (left, right))
    ]
    pieces = []
    for start in range(0, len(left), step):
        first = converted(left[start : start + step], buffers[0])
        second = first if same else converted(right[start : start + step], buffers[1])
        pieces.append(first @ second.mT)
    return torch.cat(pieces)


def factor(weights: Tensor, projection: Projection) -> Tensor:
    """Return `L`, float64 `[H, d_h, d_h]`, lower-triangular with `L Lᵀ = W Wᵀ` for each `W` of `[H, d_h, D]`.

    Raises:
        NonFiniteWeightError: a weight holds NaN or infinity; the message names `projection`.
    """
    products = gram(weights, weights)
    check_finite(products, projection)
    return factor_of_gram(products, lambda heads: weights[heads.to(weights.device)])


def check_finite(products: Tensor, projection: Projection) -> None:
    """Raise NonFiniteWeightError when `W Wᵀ` `[H, d_h, d_h]` shows that a weight holds NaN or infinity."""
    finite = products.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)
    if not finite.all():
        raise NonFiniteWeightError(int((~finite).nonzero()[0]), projection)


def factor_of_gram(products: Tensor, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `L` from `G = W Wᵀ` `[H, d_h, d_h]`; `weights_of(heads)` gives the weights of the heads that need QR."""
    lower, failed = torch.linalg.cholesky_ex(products)
    smallest_pivot = lower.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    largest = products.diagonal(dim1=-2, dim2=-1).amax(-1)
    numbers = torch.finfo(products.dtype)
    untrusted = (failed != 0) | ~(smallest_pivot > numbers.eps**0.5 * largest)
    # Squares of float64 weights below 1e-146 are subnormal and lose digits.
    untrusted |= largest < numbers.tiny / numbers.eps
    if untrusted.any():
        heads = untrusted.nonzero().flatten()
        lower[heads] = _qr_factor(weights_of(heads)).to(lower.device)
    return lower


def pseudo_inverse(lower: Tensor) -> Tensor:
    """Return `L⁺`, `[H, n, m]`, of `L` `[H, m, n]`; singular values within rounding count as zero."""
    size = torch.linalg.matrix_norm(lower)
    floor = ROUNDING * torch.finfo(lower.dtype).eps * size
    return torch.linalg.pinv(lower, atol=floor, rtol=torch.zeros_like(floor))


def product_floor(left: Tensor, right: Tensor) -> Tensor:
    """Return the rounding error of `leftᵀ right`, `[H]`: smaller singular values cannot be told from zero.

    It is measured by the factors and not by the product, because a product may cancel: where queries and keys use
    different parts of the head's space, the product is nothing but rounding.
    """
    return ROUNDING * torch.finfo(left.dtype).eps * torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)


def _qr_factor(weights: Tensor) -> Tensor:
    factors = []
    # One head at a time: the float64 copy and its reflectors are several times the size of the weights.
    for head in with_float64(weights):
        upper = torch.linalg.qr(head.double().T, mode="r").R
        signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
        # A residual stream narrower than the number of rows gives a wide R; rows of zeros make it square again.
        factors.append(pad((signs.unsqueeze(-1) * upper).T, (0, len(head) - len(upper))))
    return torch.stack(factors)
