"""The attention sink of a model as a run of it shows it, and the option that protects it.

Trained models let queries without anything to find attend to the first token. `qkedit.runtime.sink` runs a model on
one token and makes a `Sink`; an edit that protects it leaves alone the query directions that find it. This module does
not import torch, so that a plan can be made quickly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkedit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# On the model that was measured, protecting eight directions halves the cost of an edit (docs/laboratory.md).
DIRECTIONS = 8
NONE, SINK = "none", "sink"


@dataclass(frozen=True, eq=False)
class Sink:
    """The keys of a model's first token, as queries meet them.

    Attributes:
        token: the token that the model was run on.
        moments: by layer the sum of `(R_nᵀ k)(R_nᵀ k)ᵀ` over the distances n, for the key k of each key head, after
            its norm: float64 `[H_kv, d_h, d_h]` on the CPU.
    """

    token: int
    moments: Mapping[int, Tensor]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the moments, layer by layer."""
        digest = hashlib.sha256()
        for index in sorted(self.moments):
            digest.update(index.to_bytes(4, "little"))
            digest.update(self.moments[index].contiguous().numpy().tobytes())
        return digest.hexdigest()


def protected_directions(text: str) -> int:
    """Return the number of directions that `--protect` asks for: `none`, `sink` or `sink:4`.

    Raises:
        UsageError: the text is none of these.
    """
    if text == NONE:
        return 0
    name, separator, number = text.partition(":")
    if name == SINK and (not separator or (number.isascii() and number.isdecimal() and int(number[:9]) > 0)):
        return int(number) if separator else DIRECTIONS
    raise UsageError(f"{text!r} cannot be protected", where="protect", remedy="give none, sink or sink:4")


def protection_text(directions: int) -> str:
    """Return the option for a number of directions."""
    return f"{SINK}:{directions}" if directions else NONE


def missing_sink() -> UsageError:
    """Return the error for a plan that protects a sink which has not been measured."""
    return UsageError(
        "the directions are found by a run of the model",
        where="protect",
        remedy="give sink=qkedit.sink_of(model), with the model as transformers loads it",
    )
