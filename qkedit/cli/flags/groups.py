"""Groups of flags that several commands share.

A group is a frozen dataclass whose fields are declared like flags. A command has one as a parameter; Typer sees its
fields instead, and the command gets the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from inspect import Parameter
from typing import Any, get_type_hints


class FlagGroup:
    """The base class of groups of flags."""


def flags_of(parameter: Parameter) -> list[Parameter]:
    """Return the parameters for Typer: those of a group, or the parameter itself."""
    group = _group(parameter)
    if group is None:
        return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(group)  # type: ignore[arg-type]  # groups are dataclasses
    ]


def value_of(parameter: Parameter, values: Mapping[str, Any]) -> Any:
    """Return the argument of a command for a parameter, from the values of all flags."""
    group = _group(parameter)
    if group is None:
        return values[parameter.name]
    return group(**{flag.name: values[flag.name] for flag in flags_of(parameter)})


def _group(parameter: Parameter) -> type[FlagGroup] | None:
    kind = parameter.annotation
    return kind if isinstance(kind, type) and issubclass(kind, FlagGroup) else None
