"""Convert ordinary values of flags without Typer's converters, whose pydantic takes 0.1 s to import.

Ordinary means: there is one way to read the value, and it is valid. Typer converts all others, and refuses them in its
own words. Versions of Typer without pydantic have other converters, and keep them.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?", re.ASCII)
_PATH_CHECKS = ("exists", "writable", "resolve_path", "allow_dash", "path_type")


class _NotPlain(Exception):
    """The value is not an ordinary one."""


class PlainValues:
    """A command of Typer whose parameters convert ordinary values themselves."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, with that for help."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of Typer's classes
        for parameter in parameters:
            if getattr(parameter, "_runtime_param", _NotPlain) is None:  # Typer has not made one yet
                parameter._runtime_param = _Converter(parameter)
        return parameters


class _Converter:
    """What Typer asks to convert the values of one parameter."""

    def __init__(self, parameter: Any) -> None:
        described = parameter.type_descriptor
        self._annotation, self._settings = described.annotation, described.parameter_info

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the converted value. Raises Typer's errors for invalid values."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        try:
            if not several:
                return _plain(self._annotation, self._settings, value)
            if get_origin(self._annotation) is list and isinstance(value, list | tuple):
                (kind,) = get_args(self._annotation)
                return [_plain(kind, self._settings, item) for item in value]
        except (_NotPlain, ValueError):
            pass
        param._runtime_param = None  # makes Typer create its own
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _plain(kind: Any, settings: Any, value: Any) -> Any:
    """Return an ordinary value as its kind. Raises _NotPlain."""
    if settings.parser is None and get_origin(kind) is Literal and type(value) is str and value in get_args(kind):
        return value
    if settings.parser is None and isinstance(kind, type):
        if issubclass(kind, Path) and _is_plain_path(settings, value):
            return kind(value)
        if issubclass(kind, Enum) and type(value) in (str, kind):
            return _word(kind, value)
        if kind in (int, float):
            return _number(kind, settings, value)
        if kind in (str, bool) and type(value) is kind:
            return value
    raise _NotPlain


def _word(kind: type[Enum], value: Any) -> Enum:
    for word in kind:
        if value is word or value == word.value:
            return word
    raise _NotPlain


def _number(kind: type[int] | type[float], settings: Any, value: Any) -> int | float:
    if type(value) is str and (_WHOLE_NUMBER if kind is int else _NUMBER).fullmatch(value):
        value = kind(value)
    if type(value) is not kind or settings.clamp:
        raise _NotPlain
    low, high = settings.min, settings.max
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise _NotPlain
    return value


def _is_plain_path(settings: Any, value: Any) -> bool:
    """Return whether a path needs no check, or passes the only one that is made by default: that it is readable."""
    if any(getattr(settings, name) for name in _PATH_CHECKS) or not (settings.file_okay and settings.dir_okay):
        return False
    if (type(value) is not str and not isinstance(value, Path)) or "\0" in str(value):
        return False
    return not settings.readable or not os.path.exists(value) or os.access(value, os.R_OK)
