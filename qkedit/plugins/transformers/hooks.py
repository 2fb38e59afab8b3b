"""Hooks on decoder layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that acts only in the thread that set it, so that decoding in other threads is unaffected."""
    owner = threading.get_ident()

    def guarded(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    return guarded


def state_of(output: Any) -> Tensor:
    """Return the state in a decoder layer's output: most return it alone, a few in a tuple."""
    return output if isinstance(output, Tensor) else output[0]
