"""The edits whose cost is measured; only the number of seeds of the controls was chosen after a result."""

from __future__ import annotations

from dataclasses import replace

from qkedit.laboratory.arms import Arm, controls
from qkedit.spectral.suppression import Control, Suppression
from qkedit.steering.steer_options import Product, SteerOptions

SEEDS = 5
MIDDLE = "10-20"
DEFAULT = SteerOptions(MIDDLE, device="cpu", allow_text_only=True)


def _with(name: str, layers: str = MIDDLE, product: Product = "raw", **suppression: object) -> Arm:
    options = replace(DEFAULT, layers=layers, product=product)
    return Arm(name, replace(options, suppression=Suppression(**suppression)))  # type: ignore[arg-type]


EDIT = Arm("k 4", DEFAULT)
SYMMETRIC = _with("k 4, symmetric", channel="symmetric")
PROTECTED = tuple(Arm(f"k 4, protect sink:{count}", replace(DEFAULT, protect=count)) for count in (8, 4, 1))
SPARED = Arm("k 4, spare induction", replace(DEFAULT, spare="induction"))
BOTH = Arm("k 4, protect sink:8, spare induction", replace(DEFAULT, protect=8, spare="induction"))
FOLDED = Arm("k 4, folded", replace(DEFAULT, product="folded"))
EDITS = (
    SYMMETRIC,
    EDIT,
    _with("k 4, antisymmetric", channel="antisymmetric"),
    _with("k 1", k=1),
    _with("k 8", k=8),
    _with("k 4, retain 0.5", retain=0.5),
    _with("k 4, retain 0.8", retain=0.8),
    *PROTECTED,
    SPARED,
    BOTH,
    FOLDED,
    _with("k 4, folded, symmetric", channel="symmetric", product="folded"),
    *(_with(f"k 4, layer {layer}", str(layer)) for layer in (10, 14, 17, 20)),
    _with("k 4, layers 1-9", "1-9"),
    _with("k 4, layers 20-29", "20-29"),
    _with("all modes: queries zeroed", energy=1.0),
)


def _controls(edit: Arm, kind: Control) -> tuple[Arm, tuple[Arm, ...]]:
    return edit, controls(edit.steer or DEFAULT, kind, SEEDS, f"{kind}-matched of {edit.name}")


# By name, the edit and its controls.
CONTROLS: dict[str, tuple[Arm, tuple[Arm, ...]]] = {
    seeds[0].group: (edit, seeds)
    for edit, seeds in (
        _controls(EDIT, "index"),
        _controls(EDIT, "norm"),
        _controls(SYMMETRIC, "index"),
        _controls(PROTECTED[0], "index"),
    )
}
# The most informative ones first, since a run may be interrupted.
FIRST = (SYMMETRIC, EDIT, PROTECTED[0], SPARED, BOTH, FOLDED)
ARMS = (
    *FIRST,
    *(arm for same in zip(*(seeds for _, seeds in CONTROLS.values()), strict=True) for arm in same),
    *(arm for arm in EDITS if arm not in FIRST),
)
