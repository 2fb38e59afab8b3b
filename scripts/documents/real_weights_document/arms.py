"""The edits whose cost is measured, all but the control's seeds without a choice that depends on a result."""

from __future__ import annotations

from dataclasses import replace

from qkedit.laboratory.arms import Arm, controls
from qkedit.spectral.suppression import Suppression
from qkedit.steering.steer_options import SteerOptions

SEEDS = 5
MIDDLE = "10-20"
DEFAULT = SteerOptions(MIDDLE, device="cpu", allow_text_only=True)


def _with(name: str, layers: str = MIDDLE, **suppression: object) -> Arm:
    return Arm(name, replace(DEFAULT, layers=layers, suppression=Suppression(**suppression)))  # type: ignore[arg-type]


EDIT = Arm("k 4", DEFAULT)
SYMMETRIC = _with("k 4, symmetric", channel="symmetric")
INDEX, NORM = "index-matched", "norm-matched"
CONTROLS: dict[str, tuple[Arm, ...]] = {
    INDEX: controls(DEFAULT, "index", SEEDS, INDEX),
    NORM: controls(DEFAULT, "norm", SEEDS, NORM),
}
PROTECTED = tuple(Arm(f"k 4, protect sink:{count}", replace(DEFAULT, protect=count)) for count in (8, 4, 1))
EDITS = (
    EDIT,
    SYMMETRIC,
    _with("k 4, antisymmetric", channel="antisymmetric"),
    _with("k 1", k=1),
    _with("k 8", k=8),
    _with("k 4, retain 0.5", retain=0.5),
    _with("k 4, retain 0.8", retain=0.8),
    *PROTECTED,
    _with("k 4, layers 1-9", "1-9"),
    _with("k 4, layers 20-29", "20-29"),
    _with("all modes: queries zeroed", energy=1.0),
)
# The most telling ones first, since a run may be broken off.
ARMS = (
    EDIT,
    SYMMETRIC,
    PROTECTED[0],
    *(arm for seeds in zip(*CONTROLS.values(), strict=True) for arm in seeds),
    *(arm for arm in EDITS if arm not in (EDIT, SYMMETRIC, PROTECTED[0])),
)
