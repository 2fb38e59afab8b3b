"""Layers of the decoder by number: `8-16`, `0-3,7`, both ends included; `all`."""

from __future__ import annotations

import re

from qkedit.errors import UsageError

_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def layer_numbers(text: str, where: str) -> tuple[int, ...] | None:
    """Return the layers that `text` names, ascending; None for `all`. Raises UsageError for anything else."""
    if text.strip() == "all":
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise UsageError(f"{text!r} names no layers", where=where, remedy="write 8-16, 0-3,7 or all")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def model_layers(text: str, count: int, where: str) -> tuple[int, ...]:
    """Return the layers that `text` names of a model with `count` layers. Raises UsageError for others."""
    layers = layer_numbers(text, where)
    if layers is None:
        return tuple(range(count))
    if layers[-1] >= count:
        raise UsageError(
            f"{text!r} goes beyond the model", where=where, remedy=f"the model has layers 0 to {count - 1}"
        )
    return layers


def described(layers: tuple[int, ...]) -> str:
    """Return ascending layers as text that `layer_numbers` reads: `0-3,7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
