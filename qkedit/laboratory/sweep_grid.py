"""The grid of a sweep: the edits, their matched random controls, and the objective.

This module does not import torch, so that a command can refuse an invalid request quickly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.metric import Better
from qkedit.laboratory.arms import BASE, Arm, controls
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import measure_named
from qkedit.laboratory.tuning.goal import Guard
from qkedit.laboratory.tuning.space import SearchSpace
from qkedit.spectral.sink import protection_text
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.steer_options import Role, SteerOptions


def left_alone(protect: int, spare: Role) -> str:
    """Return what an edit leaves alone, to be put behind its other options: `, protect sink:4, spare induction`."""
    protected = f", protect {protection_text(protect)}" if protect else ""
    return f"{protected}, spare {spare}" if spare != "none" else protected


@dataclass(frozen=True)
class Cell:
    """One edit of the grid."""

    layers: str
    k: int
    channel: Channel
    retain: float
    protect: int = 0
    spare: Role = "none"

    @property
    def name(self) -> str:
        """Return the name of the cell for people."""
        alone = left_alone(self.protect, self.spare)
        return f"layers {self.layers}, k {self.k}, {self.channel}, retain {self.retain:g}{alone}"

    def arm(self) -> Arm:
        """Return the edit itself."""
        return Arm(self.name, self._options())

    def controls(self, kind: Control, seeds: int) -> tuple[Arm, ...]:
        """Return `seeds` matched random edits: with the same layers, channel, number of modes and kept share."""
        return controls(self._options(), kind, seeds, f"{self.name}, {kind} control")

    def _options(self) -> SteerOptions:
        # On the CPU, the edit is the same on every machine; it takes little time compared with the answers.
        return SteerOptions(
            self.layers,
            suppression=Suppression(self.k, None, self.retain, self.channel),
            device="cpu",
            protect=self.protect,
            spare=self.spare,
        )


@dataclass(frozen=True)
class SweepSettings:
    """All settings that affect a sweep's results, and so identify its results file.

    Attributes:
        model: the model as the user named it.
        weights: the digest of its weights.
        dtype: the dtype of its weights in memory.
        device: the kind of device it runs on.
        layers: the alternatives, each in the form of `--layers`, without repetitions.
        ks: the numbers of modes.
        channels: the channels of the product.
        retains: the kept shares.
        control: the kind of the random controls.
        seeds: the number of controls per cell.
        objective: the name of the measure to improve.
        guards: the measures that must not get worse.
        scenes: the first half for the choice, the second for the confirmation.
        eval_set: the digest of the evaluation set for all of them.
        protect: the number of query directions that every cell leaves alone; see `SteerOptions`.
        spare: the role of the heads that every cell leaves alone.
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
    protect: int = 0
    spare: Role = "none"

    def __post_init__(self) -> None:
        """Refuse settings that could not be ranked. Raises UsageError."""
        if measure_named(self.objective, "--objective").better is Better.NEITHER:
            raise UsageError(f"{self.objective} has no better direction", where="--objective", remedy="choose another")
        if self.scenes.count < 4:
            raise UsageError("each half needs two scenes", where="--scenes", remedy="give 4 or more, such as 500")
        if self.seeds < 1:
            raise UsageError("no cell would have a control", where="--seeds", remedy="give 1 or more, such as 5")
        if self.control == "none":
            raise UsageError("no cell would have a control", where="--control", remedy="take index or norm")
        for cell in self.cells():
            cell.controls(self.control, 1)  # refuses a control that the channel does not have

    def cells(self) -> tuple[Cell, ...]:
        """Return the grid, with the mildest edits of the same layers first."""
        space = SearchSpace(self.layers, ("all",), self.ks, (), self.channels, self.retains)
        return tuple(
            Cell(edit.layers, edit.k, edit.channel, edit.retain, self.protect, self.spare)
            for edit in space.candidates()
            if edit.k is not None
        )

    def arms(self) -> tuple[Arm, ...]:
        """Return all arms that run on the first half of the scenes: base, cells and their controls."""
        arms = [Arm(BASE)]
        for cell in self.cells():
            arms += [cell.arm(), *cell.controls(self.control, self.seeds)]
        return tuple(arms)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in the form of the results file."""
        settings = asdict(self)
        settings["exam"] = settings.pop("eval_set")  # the name in all existing files
        for name, usual in (("protect", 0), ("spare", "none")):
            if settings[name] == usual:  # which these do not have
                del settings[name]
        return settings
