"""Run all computations in float64, including those that cast to float32 on purpose.

Two computations of the same quantity then agree to a dozen digits; in float32 a difference could be rounding or a
mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qkedit.plugins.transformers.branch import LockstepBranch
from tests.plugins import tiny_requests
from tests.plugins.tiny_requests import Request


class _DoubleForSingle(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace float32 by float64 in every call."""
        kwargs = {name: _double(value) for name, value in (kwargs or {}).items()}
        return function(*map(_double, args), **kwargs) if function is not Tensor.float else args[0].double()


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in float64 instead of float32 while the context is open, also in the threads of branches."""
    run_branch = LockstepBranch._run

    def run(*args: Any) -> None:
        with _DoubleForSingle():  # which holds for one thread
            run_branch(*args)

    torch.set_default_dtype(torch.float64)
    try:
        with _DoubleForSingle(), patch.object(LockstepBranch, "_run", run):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def model(family: str) -> Any:
    """Return a new tiny model in float64."""
    return tiny_requests.model.__wrapped__(family).double()


def doubled(request: Request) -> Request:
    """Return the same request with float64 pixels."""
    inputs = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in request.inputs.items()
    }
    return Request(inputs, request.cells)
