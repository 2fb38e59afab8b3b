"""Small square factors of wide weights: `L` with `L Lᵀ = W Wᵀ`, so that no `D × D` matrix is ever formed.

A head's weight `W` is `[d_h, D]` with `D ≫ d_h`. Writing `W = L Qᵀ` with orthonormal `Q` (`[D, d_h]`), the
singular values of `W_qᵀ W_k = Q_q (L_qᵀ L_k) Q_kᵀ` are those of the `d_h × d_h` core `L_qᵀ L_k`.

Two routes lead to `L`, and each head takes the cheaper one that is true for it:

* **Gram**: `G = W Wᵀ` by one batched product, then Cholesky. It squares the condition number, so `G` is
  accumulated and factored in float64, where heads up to a condition of about 8,000 lose nothing that matters
  (the smallest singular values keep eight digits).
* **QR**: `Wᵀ = Q R`, `L = Rᵀ`. Some ten times slower, true to the last singular value: for the heads whose
  Cholesky pivots show that they are worse conditioned, rank-deficient or zero.

Both give the lower-triangular factor with a non-negative diagonal, which is unique for full rank: random
draws expressed in its coordinates mean the same on every route and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Projection = Literal["query", "key"]

# Float64 copies of weights are made in pieces of about this size: on a CPU a piece then stays in the cache
# between its conversion and its product. A GPU takes a whole layer at once.
CPU_WORKING_BYTES = 8 << 20
GPU_WORKING_BYTES = 2 << 30

# Rounding leaves an error of some eps times the Frobenius norms in a factor or a core; this many of them is safe.
ROUNDING = 16


# Only float64 weights can hold the last of them.
NOT_TO_BE_SQUARED = "NaN, infinity or numbers beyond 1e150"


class NonFiniteWeightError(ValueError):
    """A weight's square is not a number; `head` is its position along the first axis of `projection`."""

    def __init__(self, head: int, projection: Projection) -> None:
        self.head = head
        self.projection = projection
        super().__init__(f"the weights of {projection} head {head} hold {NOT_TO_BE_SQUARED}")


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the widest dtype `device` multiplies in: float64, but float32 on Apple's MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_device(weights: Tensor, device: torch.device) -> Tensor:
    """Return `weights` on `device`, or as they are where it has no such numbers."""
    return weights.to(device) if weights.dtype.itemsize <= product_dtype(device).itemsize else weights


def with_float64(weights: Tensor) -> Tensor:
    """Return `weights` where they can be multiplied in float64: on their device, or else on the CPU."""
    return weights if product_dtype(weights.device) == torch.float64 else weights.cpu()


def heads_per_piece(weights: Tensor, dtype: torch.dtype) -> int:
    """Return how many leading entries of `weights` (`[H, …]`) to convert to `dtype` at once."""
    budget = CPU_WORKING_BYTES if weights.device.type == "cpu" else GPU_WORKING_BYTES
    return max(1, budget // max(1, weights[0].numel() * dtype.itemsize))


def converted(piece: Tensor, buffer: Tensor) -> Tensor:
    """Return `piece` in the dtype of `buffer`, in the first entries of its memory."""
    return buffer[: len(piece)].copy_(piece)


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ rightᵀ` over the last axis, float64: `[H, m, D] × [H, n, D] → [H, m, n]`.

    On the device of `left`, or on the CPU where that has no float64.
    """
    same = right is left
    left = with_float64(left)
    right = left if same else right.to(left.device)
    step = heads_per_piece(left, torch.float64)
    # One piece of memory for all conversions: fresh memory costs more at its first touch than the conversion does.
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
        NonFiniteWeightError: a weight holds NaN or infinity; it names `projection`.
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
    # Squares of float64 weights below 1e-146 lose digits towards the least number that there is.
    untrusted |= largest < numbers.tiny / numbers.eps
    if untrusted.any():
        heads = untrusted.nonzero().flatten()
        lower[heads] = _qr_factor(weights_of(heads)).to(lower.device)
    return lower


def pseudo_inverse(lower: Tensor) -> Tensor:
    """Return `L⁺`, `[H, n, m]`, of `L` `[H, m, n]`; what is no more than rounding counts as zero."""
    size = torch.linalg.matrix_norm(lower)
    floor = ROUNDING * torch.finfo(lower.dtype).eps * size
    return torch.linalg.pinv(lower, atol=floor, rtol=torch.zeros_like(floor))


def product_floor(left: Tensor, right: Tensor) -> Tensor:
    """Return, `[H]`, the rounding in the entries of `leftᵀ right`: smaller singular values cannot be told from zero.

    It is measured by the factors and not by the product, because a product may cancel: heads whose queries and
    keys use different parts of the head's space have one that is nothing but rounding.
    """
    return ROUNDING * torch.finfo(left.dtype).eps * torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)


def _qr_factor(weights: Tensor) -> Tensor:
    factors = []
    # One at a time: the float64 copy and its reflectors are several times the weights.
    for head in with_float64(weights):
        upper = torch.linalg.qr(head.double().T, mode="r").R
        signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
        # A residual stream narrower than the rows gives a wide R; rows of zeros make it square again.
        factors.append(pad((signs.unsqueeze(-1) * upper).T, (0, len(head) - len(upper))))
    return torch.stack(factors)
