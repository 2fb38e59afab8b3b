"""The grid of a sweep: the edits, their matched random controls, and the objective.

This module does not import torch, so that a command can refuse an invalid request quickly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qkedit.errors import UsageError
from qkedit.evaluation.statistics.guard import Guard
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.eval_set import SceneRange
from qkedit.laboratory.measures import MEASURES
from qkedit.laboratory.tuning.goal import Goal, measure_at
from qkedit.laboratory.tuning.space import Candidate, SearchSpace
from qkedit.spectral.suppression import Channel, Control
from qkedit.steering.steer_options import Product, Role


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
        product: the product whose modes every cell suppresses.
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
    product: Product = "raw"

    def __post_init__(self) -> None:
        """Refuse settings that could not be ranked. Raises UsageError."""
        self.goal  # noqa: B018 - refuses an objective that cannot be improved
        if self.scenes.count < 4:
            raise UsageError("each half needs two scenes", where="--scenes", remedy="give 4 or more, such as 500")
        if self.seeds < 1:
            raise UsageError("no cell would have a control", where="--seeds", remedy="give 1 or more, such as 5")
        if self.control == "none":
            raise UsageError("no cell would have a control", where="--control", remedy="choose index or norm")
        for cell in self.cells():
            cell.controls(self.control, 1)  # refuses a control that the channel does not have

    @property
    def goal(self) -> Goal:
        """The objective and the guards."""
        return Goal(measure_at(self.objective, MEASURES, "--objective"), self.guards, MEASURES)

    def cells(self) -> tuple[Candidate, ...]:
        """Return the grid, with the mildest edits of the same layers first."""
        space = SearchSpace(
            self.layers,
            ks=self.ks,
            channels=self.channels,
            retains=self.retains,
            protects=(self.protect,),
            spares=(self.spare,),
            products=(self.product,),
        )
        return space.candidates()

    def arms(self) -> tuple[Arm, ...]:
        """Return all arms that run on the first half of the scenes: base, cells and their controls."""
        arms = [Arm(BASE)]
        for cell in self.cells():
            arms += [cell.arm(), *cell.controls(self.control, self.seeds)]
        return tuple(arms)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in the form of the results file."""
        settings = asdict(self)
        settings["scenes"] = self.scenes.as_dict()
        settings["exam"] = settings.pop("eval_set")  # the name in all existing files
        for name, usual in (("protect", 0), ("spare", "none"), ("product", "raw")):
            if settings[name] == usual:  # which these do not have
                del settings[name]
        return settings
