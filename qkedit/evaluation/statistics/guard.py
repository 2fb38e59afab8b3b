"""Guards: limits on how much worse than a reference a figure may be, such as `recall:0.02`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qkedit.errors import UsageError
from qkedit.evaluation.metric import Better

NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_GUARD = re.compile(rf"\s*([^\s<>=:]+)\s*:\s*({NUMBER})\s*")
# A loss of exactly the tolerance is allowed, although 0.80 − 0.78 is a little more than 0.02 in binary.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Guard:
    """The limit on how much worse than the reference one figure may be.

    Attributes:
        path: the figure's name.
        tolerance: the largest loss, in the figure's unit.
    """

    path: str
    tolerance: float

    def __str__(self) -> str:
        """Return the guard in the format of `--no-worse`."""
        return f"{self.path}:{self.tolerance!r}"

    def is_kept(self, lost: float | None, slack: float = 1.0) -> bool:
        """Return whether a loss is within the tolerance times `slack`; False without a loss."""
        return lost is not None and lost <= self.tolerance * slack + _ROUNDING


def parse_guard(text: str) -> Guard:
    """Parse a guard such as `recall:0.02`. Raises UsageError."""
    matched = _GUARD.fullmatch(text)
    tolerance = finite(matched[2], "--no-worse") if matched else -1.0
    if matched is None or tolerance < 0:
        raise UsageError(
            f"{text!r} is not a metric with a tolerance", where="--no-worse", remedy="write one as recall:0.02"
        )
    return Guard(matched[1], tolerance)


def loss(better: Better, value: float | None, reference: float | None) -> float | None:
    """Return how much worse a value is than the reference, negative if it is better; None without either."""
    if value is None or reference is None:
        return None
    return reference - value if better is Better.HIGHER else value - reference


def finite(text: str, where: str) -> float:
    """Return the number that matches `NUMBER`. Raises UsageError if it is too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise UsageError(f"{text} is too large", where=where, remedy="give a smaller number")
    return number
