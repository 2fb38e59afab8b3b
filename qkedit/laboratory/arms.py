"""The arms of an experiment: the base model, an edit of it, plug-ins on it, and their controls.

This module does not import torch, so that a command can list its work quickly.
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
    """One variant of a model; all arms answer the same prompts.

    Attributes:
        name: the name for people, unique in an experiment.
        steer: the edit of its weights; None for the original weights.
        plugins: the plug-ins attached while it answers, in this order. A `dscr` without a depth uses the true depth.
        group: the common name of repetitions with other seeds; for an arm without repetitions its own name.
    """

    name: str
    steer: SteerOptions | None = None
    plugins: tuple[PluginSettings, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        """Make an arm without repetitions a group of its own."""
        if not self.group:
            object.__setattr__(self, "group", self.name)

    def as_dict(self) -> dict[str, Any]:
        """Return the arm in the form of a results file."""
        return {
            "name": self.name,
            "group": self.group,
            "steer": None if self.steer is None else as_plain(self.steer.recorded()),
            "plugins": [plugin.as_dict() for plugin in self.plugins],
        }


def controls(options: SteerOptions, kind: Control, seeds: int, group: str) -> tuple[Arm, ...]:
    """Return the matched random controls of an edit, one per seed from 0.

    Args:
        options: the options of the edit.
        kind: `index` or `norm`.
        seeds: the number of controls.
        group: the common name of the controls.
    """
    return tuple(
        Arm(
            f"{group}, seed {seed}",
            replace(options, suppression=replace(options.suppression, control=kind, seed=seed)),
            group=group,
        )
        for seed in range(seeds)
    )


_CONTRASTS = ("vcd", "icd", "sid", "crops", "m3id", "pai-contrast")
_OTHERS = ("pai-attention", "middle-layer", "vaf", "kvsmooth", "dola", "deco", "damo", "opera")
# The other methods, and the options with which they are compared where they are not the published ones. SID keeps a
# share, since small models have fewer image tokens than the number published for questions.
RIVALS: dict[str, dict[str, Any]] = {name: {} for name in (*_CONTRASTS, *_OTHERS)}
RIVALS["sid"] = {"keep": 0.25}
# Those that have a matched random control, `control=SEED`.
CONTROLLED = tuple(RIVALS)


def rival_arms(options: SteerOptions, seeds: int) -> tuple[Arm, ...]:
    """Return the base, an edit, SCR, DSCR and the other methods with published settings, and their controls.

    The plausibility cut alone is a control too: under greedy search it must not change anything.

    Args:
        options: the options of the edit.
        seeds: the number of seeds of each matched random control.

    Raises:
        UsageError: there are no seeds.
    """
    arms = [arm for arm in demonstration_arms(options, seeds, all_arms=True) if not (arm.steer and arm.plugins)]
    arms.append(Arm("plausibility cut alone", plugins=(PluginSettings("vcd", {"alpha": 0.0}),)))
    for name, chosen in RIVALS.items():
        arms.append(Arm(name, plugins=(PluginSettings(name, chosen),)))
        arms += [
            Arm(
                f"{name}, random, seed {seed}",
                plugins=(PluginSettings(name, {**chosen, "control": seed}),),
                group=f"{name}, random",
            )
            for seed in range(seeds if name in CONTROLLED else 0)
        ]
    return tuple(arms)


def demonstration_arms(options: SteerOptions, seeds: int, all_arms: bool = False) -> tuple[Arm, ...]:
    """Return the arms to compare: base, edit, its index-matched controls, and the plug-ins.

    Args:
        options: the options of the edit.
        seeds: the number of random controls of each kind.
        all_arms: also return norm-matched controls, which channels do not have, and plug-ins on the edited model.

    Raises:
        UsageError: there are no seeds, so the edit would have no control.
    """
    if seeds < 1:
        raise UsageError("the edit would have no control", where="--seeds", remedy="give 1 or more, such as 5")
    scr = PluginSettings("scr")
    uniform = PluginSettings("scr", {"selection": "uniform"})
    dscr = PluginSettings("dscr")
    has_norm = all_arms and options.suppression.channel == "full"
    return (
        Arm(BASE),
        Arm(EDITED, options),
        *controls(options, "index", seeds, CONTROL),
        *(controls(options, "norm", seeds, "control, norm") if has_norm else ()),
        Arm("SCR", plugins=(scr,)),
        Arm("SCR, uniform", plugins=(uniform,)),
        Arm("DSCR", plugins=(dscr,)),
        *((Arm("edited + SCR", options, (scr,)), Arm("edited + DSCR", options, (dscr,))) if all_arms else ()),
    )
