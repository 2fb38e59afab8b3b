"""An optimizer that keeps the rank of query and key projections: an update's singular values are equal in each head.

Adam moves a head's projection along few directions, those of the strongest gradients. After some thousand steps, they
dominate the projection, which began with full rank. Here the momentum of each head is replaced by the nearest matrix
with orthonormal rows before it is applied, so that weak directions of the gradient are learned as fast as strong ones
(Muon: Jordan et al. 2024; the scale that fits Adam's learning rates is that of Liu et al. 2025, arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration, from Jordan et al.
_ITERATIONS = 5
_ADAM_SIZE = 0.2  # the root mean square of an entry of Adam's usual update, in units of the learning rate


class HeadwiseMuon(torch.optim.Optimizer):
    """Apply momentum, made orthonormal head by head.

    Args:
        parameters: matrices `[H · d, hidden]`, or groups of them.
        lr: the learning rate, as for Adam.
        head_size: d, by which a matrix is split into H matrices `[d, hidden]`; 0 does not split it.
        momentum: the decay of the running mean of gradients (with Nesterov momentum).
        weight_decay: the decoupled weight decay, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        head_size: int = 0,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "head_size": head_size, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(mean, group["momentum"])
                heads = ahead.unflatten(0, (-1, group["head_size"] or len(ahead)))
                scale = _ADAM_SIZE * max(heads.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthonormal(heads).flatten(0, 1), alpha=-group["lr"] * scale)


def orthonormal(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices `[..., a, b]` with the same singular vectors and singular values near 1."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthonormal(matrices.mT).mT
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-12)
    one, two, three = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = one * x + (two * gram + three * gram @ gram) @ x
    return x
