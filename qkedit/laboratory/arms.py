"""The arms of an experiment: the base model, an edit of it, plug-ins on it, and the controls that go with them.

Free of torch, so that a command can list what it will do at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qkedit.checkpoint.record_reader import as_plain
from qkedit.errors import UsageError
from qkedit.plugins.settings import PluginSettings
from qkedit.spectral.suppression import Control
from qkedit.steering.steer_options import SteerOptions

BASE, EDITED, CONTROL = "base", "edited", "control, index"


@dataclass(frozen=True)
class Arm:
    """One variant of a model that answers what all the others answer.

    Attributes:
        name: for people, unique in an experiment.
        steer: the edit of its weights; None leaves them as they are.
        plugins: attached while it answers, in this order. A `dscr` without a depth reads the scenes' true one.
        group: what repetitions under other seeds are summarised as; the name of an arm that has none.
    """

    name: str
    steer: SteerOptions | None = None
    plugins: tuple[PluginSettings, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        """An arm without repetitions is a group by itself."""
        if not self.group:
            object.__setattr__(self, "group", self.name)

    def as_dict(self) -> dict[str, Any]:
        """Return the arm as results keep it."""
        return {
            "name": self.name,
            "group": self.group,
            "steer": None if self.steer is None else as_plain(self.steer.recorded()),
            "plugins": [plugin.as_dict() for plugin in self.plugins],
        }


def controls(options: SteerOptions, kind: Control, seeds: int, group: str) -> tuple[Arm, ...]:
    """Return the matched random controls of an edit, one a seed from 0.

    Args:
        options: of the edit that is to be controlled.
        kind: `index` or `norm`.
        seeds: how many.
        group: their common name.
    """
    return tuple(
        Arm(
            f"{group}, seed {seed}",
            replace(options, suppression=replace(options.suppression, control=kind, seed=seed)),
            group=group,
        )
        for seed in range(seeds)
    )


def demonstration_arms(options: SteerOptions, seeds: int) -> tuple[Arm, ...]:
    """Return what is compared: base, edit, its controls, the plug-ins, and plug-ins on the edited model.

    Channels have no norm-matched control.

    Raises:
        UsageError: without a seed the edit has no control.
    """
    if seeds < 1:
        raise UsageError("the edit would have no control", where="--seeds", remedy="give 1 or more, such as 5")
    scr = PluginSettings("scr")
    uniform = PluginSettings("scr", {"selection": "uniform"})
    dscr = PluginSettings("dscr")
    return (
        Arm(BASE),
        Arm(EDITED, options),
        *controls(options, "index", seeds, CONTROL),
        *(controls(options, "norm", seeds, "control, norm") if options.suppression.channel == "full" else ()),
        Arm("SCR", plugins=(scr,)),
        Arm("SCR, uniform", plugins=(uniform,)),
        Arm("DSCR", plugins=(dscr,)),
        Arm("edited + SCR", options, (scr,)),
        Arm("edited + DSCR", options, (dscr,)),
    )
