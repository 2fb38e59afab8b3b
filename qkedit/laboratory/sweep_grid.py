"""The grid of a sweep: which edits, the random controls that match each of them, and what is aimed at.

Free of torch, so that a command can refuse a wrong request at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from qkedit.errors import UsageError
from qkedit.evaluation.metric import Better
from qkedit.laboratory.arms import BASE, Arm, controls
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import Measure, measure_named
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.steer_options import SteerOptions

Value = TypeVar("Value")


@dataclass(frozen=True)
class Cell:
    """One edit of the grid."""

    layers: str
    k: int
    channel: Channel
    retain: float

    @property
    def name(self) -> str:
        """Return the cell as people read it."""
        return f"layers {self.layers}, k {self.k}, {self.channel}, retain {self.retain:g}"

    def arm(self) -> Arm:
        """Return the edit itself."""
        return Arm(self.name, self._options())

    def controls(self, kind: Control, seeds: int) -> tuple[Arm, ...]:
        """Return as many random edits that match it: of the same layers, channel, modes and share that stays."""
        return controls(self._options(), kind, seeds, f"{self.name}, {kind} control")

    def _options(self) -> SteerOptions:
        # On the CPU, the edit is the same on every machine; it takes little time compared with the answers.
        return SteerOptions(
            self.layers, suppression=Suppression(self.k, None, self.retain, self.channel), device="cpu"
        )


@dataclass(frozen=True)
class Guard:
    """What a winner may not pay with: a measure that may be worse than the base's by so much and no more."""

    measure: str
    tolerance: float

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.measure}:{self.tolerance:g}"


@dataclass(frozen=True)
class SweepSettings:
    """Everything that decides a sweep's results, and so what a file of results belongs to.

    Attributes:
        model: as it was named.
        weights: digest of its weights.
        dtype: of its weights in memory.
        device: kind of device it runs on.
        layers: alternatives, each as `--layers` writes one, without repeats.
        ks: numbers of modes.
        channels: of the product.
        retains: shares that stay.
        control: kind of the random controls.
        seeds: controls a cell.
        objective: name of the measure to improve.
        guards: what that may not cost.
        scenes: the first half to choose on, the second to confirm on.
        eval_set: digest of what is asked about all of them.
    """

    model: str
    weights: str
    dtype: str
    device: str
    layers: tuple[str, ...]
    ks: tuple[int, ...]
    channels: tuple[Channel, ...]
    retains: tuple[float, ...]
    control: Control
    seeds: int
    objective: str
    guards: tuple[Guard, ...]
    scenes: SceneRange
    eval_set: str

    def __post_init__(self) -> None:
        """Refuse what could not be ranked. Raises UsageError."""
        if measure_named(self.objective, "--objective").better is Better.NEITHER:
            raise UsageError(f"{self.objective} has no better side", where="--objective", remedy="aim at another")
        if self.scenes.count < 4:
            raise UsageError("each half needs two scenes", where="--scenes", remedy="give 4 or more, such as 500")
        if self.seeds < 1:
            raise UsageError("no cell would have a control", where="--seeds", remedy="give 1 or more, such as 5")
        if self.control == "none":
            raise UsageError("no cell would have a control", where="--control", remedy="take index or norm")
        for cell in self.cells():
            cell.controls(self.control, 1)  # refuses a control that the channel has not

    def cells(self) -> tuple[Cell, ...]:
        """Return the grid, the mildest edits of the same layers first."""
        return tuple(
            Cell(layers, k, channel, retain)
            for layers in self.layers
            for channel in self.channels
            for k in self.ks
            for retain in sorted(self.retains, reverse=True)
        )

    def arms(self) -> tuple[Arm, ...]:
        """Return everything that the first half of the scenes is asked of: base, cells and their controls."""
        arms = [Arm(BASE)]
        for cell in self.cells():
            arms += [cell.arm(), *cell.controls(self.control, self.seeds)]
        return tuple(arms)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as a file keeps them."""
        settings = asdict(self)
        settings["exam"] = settings.pop("eval_set")  # its name in every file so far
        return settings


def alternatives(text: str) -> tuple[str, ...]:
    """Return the alternatives of `--layers`: `0-1;2-3;mid` are three. Raises UsageError if one is empty."""
    return _separated(text, ";", str, "--layers", "separate alternatives by ; as in '0-1;2-3'")


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Return `1,2,4` as numbers. Raises UsageError if one is none."""
    return _separated(text, ",", int, option, "give whole numbers such as 1,2,4,8")


def shares(text: str, option: str) -> tuple[float, ...]:
    """Return `0,0.5` as numbers. Raises UsageError if one is none."""
    return _separated(text, ",", float, option, "give shares such as 0,0.5")


def names(text: str, option: str) -> tuple[str, ...]:
    """Return `full,symmetric` as words. Raises UsageError if one is empty."""
    return _separated(text, ",", str, option, "separate names by commas")


def guards(text: str) -> tuple[Guard, ...]:
    """Return the guards of `--no-worse`: `recall:0.02,f1_random:0.01`, or `none`.

    Raises:
        UsageError: one is not of this form, or its measure is not known or has no better side.
    """
    if text.strip() == "none":
        return ()
    return _separated(text, ",", _guard, "--no-worse", "write MEASURE:TOLERANCE such as recall:0.02, or none")


def _guard(text: str) -> Guard:
    name, _, tolerance = text.partition(":")
    measure: Measure = measure_named(name.strip(), "--no-worse")
    if measure.better is Better.NEITHER:
        raise UsageError(f"{measure.name} has no worse side", where="--no-worse", remedy="guard another")
    guard = Guard(measure.name, float(tolerance))
    if not guard.tolerance >= 0:
        raise UsageError(f"{tolerance} is not a tolerance", where="--no-worse", remedy="give 0 or more")
    return guard


def _separated(text: str, separator: str, read: Callable[[str], Value], where: str, remedy: str) -> tuple[Value, ...]:
    """Read the parts of a list, each once, in order."""
    parts = [part.strip() for part in text.split(separator)]
    try:
        if not all(parts):
            raise ValueError
        return tuple(dict.fromkeys(read(part) for part in parts))
    except ValueError:
        raise UsageError(f"{text!r} cannot be read", where=where, remedy=remedy) from None
