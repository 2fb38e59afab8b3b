"""Former argument names of the Python API: they still work, with a warning that names the new one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_argument(old: str, new: str) -> Callable[[Function], Function]:
    """Return a decorator by which a function also accepts the keyword argument `new` under the name `old`."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            if old in named:
                warn_renamed(f"{old}=", f"{new}=")
                if new in named:
                    raise TypeError(f"{new}= and its old name {old}= are both given")
                named[new] = named.pop(old)
            return function(*args, **named)

        return cast("Function", call)

    return decorate


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller's caller that a name has changed."""
    message = f"{old} is now {new}; the old name works until version 1.0"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
