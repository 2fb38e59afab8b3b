"""A property that is calculated at its first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801 – reads as the decorator it is
    """`functools.cached_property` without its lock.

    Up to Python 3.11 `cached_property` holds one lock for all instances while it calculates, so two threads that work
    on different heads would wait for each other. Without the lock, two threads that ask the same instance may both
    calculate; that is harmless here, since the results are equal.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the attribute's name, under which the value is cached."""
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> once[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> once[Value] | Value:
        """Calculate the value and store it on the instance, where Python finds it before this descriptor."""
        if instance is None:
            return self
        value = self.function(instance)
        instance.__dict__[self.name] = value
        return value
