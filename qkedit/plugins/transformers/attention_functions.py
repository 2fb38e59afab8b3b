"""Attention functions of ours around those of transformers, which calls them by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor, nn


def registered(usual: str, suffix: str, function: Callable[..., Any]) -> str:
    """Register `function` with transformers around the attention implementation `usual`, and return its name.

    Args:
        usual: the name of the implementation, such as `sdpa`.
        suffix: the end of the function's name; each name is registered once.
        function: called with `usual` before the arguments of an attention function.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"{usual}_{suffix}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, functools.partial(function, usual))
        if usual in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    return name


def usual_attention(
    usual: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> Any:
    """Call the attention implementation `usual`, as the model would."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Eager attention is not registered; every modeling file has its own.
    own = module.module if isinstance(module, _AsConfigured) else module
    eager: Any = getattr(sys.modules[type(own).__module__], "eager_attention_forward", None)
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)
    shown = own if usual in ("sdpa", "eager") else _AsConfigured(own, usual)
    return function(shown, query, key, value, mask, **kwargs)


class _AsConfigured:
    """An attention module whose config names its usual implementation, which flash attention needs for its kernel.

    The module's own config is shared with other threads, so it is not changed.
    """

    def __init__(self, module: nn.Module, usual: str) -> None:
        config: Any = copy(module.config)
        config._attn_implementation = {"": usual}
        self.module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
