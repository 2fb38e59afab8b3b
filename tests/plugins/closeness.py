"""Compare the logits of a method with those of its formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_equals_formulas(actual: Tensor, expected: Tensor) -> None:
    """Compare logits: to 1e-5 in float32 and to 1e-10 in float64, for x relative to 1 + |x|."""
    tolerance = 1e-5 if torch.get_default_dtype() is torch.float32 else 1e-10
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)
