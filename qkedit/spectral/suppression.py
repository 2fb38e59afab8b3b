"""The options of an edit. This module does not import torch, so that a plan can be made and printed quickly."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from qkedit.errors import UsageError
from qkedit.renamed import renamed_argument, warn_renamed

Channel = Literal["full", "symmetric", "antisymmetric"]
Control = Literal["none", "index", "norm"]

# Rounding to bfloat16 moves weights by up to 0.4 %: singular values closer than this could have swapped order.
NEAR_EQUAL = 1.01


# The manifest stores k and seed, and many JSON readers do not accept larger integers.
LARGEST_NUMBER = 2**64 - 1


@dataclass(frozen=True)
class Suppression:
    """The modes to suppress, and by how much.

    Attributes:
        k: the number of dominant modes per head (planes in the antisymmetric channel); ignored if `energy` is given.
        energy: the share of the energy, in (0, 1], that the suppressed modes are to carry.
        retain: ρ, the share of each suppressed mode that is kept, in [0, 1).
        channel: the product itself, its symmetric part or its antisymmetric part.
        control: `index` suppresses as many randomly drawn other modes of the channel instead; `norm` suppresses a
            random frame that changes the product by the same amount (full channel only).
        seed: the seed of the controls' draws.

    Raises:
        UsageError: a value is outside its range, or the channel does not have the control.
    """

    k: int = 4
    energy: float | None = None
    retain: float = 0.0
    channel: Channel = "full"
    control: Control = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value; numbers of other libraries become Python's own."""
        object.__setattr__(self, "k", _whole(self.k, "k"))
        object.__setattr__(self, "seed", _whole(self.seed, "seed"))
        object.__setattr__(self, "retain", _real(self.retain, "retain"))
        if self.energy is not None:
            object.__setattr__(self, "energy", _real(self.energy, "energy"))
        if self.k < 1:
            raise UsageError(f"{self.k} modes cannot be suppressed", where="k", remedy="give 1 or more")
        if self.k > LARGEST_NUMBER:
            raise UsageError("is larger than 2**64 - 1", where="k", remedy="give fewer modes; a head has about 100")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"{self.energy:g} is not a share", where="energy", remedy="give more than 0, at most 1")
        if not 0 <= self.retain < 1:
            raise UsageError(
                f"{self.retain:g} would not suppress anything",
                where="retain",
                remedy="give 0 or more, below 1; 0 removes the modes",
            )
        if not 0 <= self.seed <= LARGEST_NUMBER:
            raise UsageError("is not between 0 and 2**64 - 1", where="seed", remedy="give a number in that range")
        if self.channel not in ("full", "symmetric", "antisymmetric"):
            raise UsageError(
                f"there is no channel {self.channel!r}",
                where="channel",
                remedy="choose full, symmetric or antisymmetric",
            )
        if self.control not in ("none", "index", "norm"):
            raise UsageError(
                f"there is no control {self.control!r}", where="control", remedy="choose none, index or norm"
            )
        if self.control == "norm" and self.channel != "full":
            raise UsageError(
                f"the {self.channel} channel has no norm-matched control", where="control", remedy="choose index"
            )

    @property
    def residual(self) -> float:
        """Return `retain`, by its old name."""
        warn_renamed("Suppression.residual", "Suppression.retain")
        return self.retain


Suppression.__init__ = renamed_argument("residual", "retain")(Suppression.__init__)  # type: ignore[method-assign]


def mode_count(channel: Channel, head_size: int, width: int) -> int:
    """Return the largest number of modes (or planes) in a channel of a head of shape `[head_size, width]`."""
    if channel == "full":
        return min(head_size, width)
    stacked = min(2 * head_size, width)
    return stacked if channel == "symmetric" else stacked // 2


def _whole(value: Any, name: str) -> int:
    """Return a whole number as an `int`. Raises UsageError for anything else, including booleans."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise UsageError(f"{value!r} is not a whole number", where=name, remedy="give one") from None


def _real(value: Any, name: str) -> float:
    """Return a number as a `float`. Raises UsageError for anything else, including booleans."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{value!r} is not a number", where=name, remedy="give one") from None
