"""The flags of a search: the space of edits, what to choose by, and how long to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.groups import FlagGroup

if TYPE_CHECKING:
    from qkedit.laboratory.tuning.search import SearchSettings
    from qkedit.laboratory.tuning.space import SearchSpace

SPACE, CHOICE, SEARCH = "Edits to search", "What to choose by", "Search"

LayersOption = Annotated[
    str,
    flag(
        "--layers",
        panel=SPACE,
        help="Alternatives, separated by ; and each written as for steer, or each: every single layer.",
    ),
]
HeadsOption = Annotated[
    str, flag("--heads", panel=SPACE, help="Alternatives, likewise: all, 'all;each', '0-3;4-7', …")
]
ModesOption = Annotated[str, flag("--k", "-k", panel=SPACE, help="Numbers of modes per head, or none.")]
EnergyOption = Annotated[
    str | None,
    flag("--energy", panel=SPACE, help="Shares of the energy, as alternatives to numbers of modes: 0.1,0.3."),
]
ChannelOption = Annotated[
    str, flag("--channel", panel=SPACE, help="Parts of the product: symmetric,full,antisymmetric.")
]
RetainOption = Annotated[str, flag("--retain", panel=SPACE, help="Shares of each suppressed mode that stay: 0,0.5.")]
ProductOption = Annotated[
    str, flag("--product", panel=SPACE, help="Products whose modes are chosen, as for steer: raw,folded.")
]
ProtectOption = Annotated[
    str,
    flag(
        "--protect",
        panel=SPACE,
        help="Query directions to leave alone, as for steer: none,sink or none,sink:4,sink:8; in the full channel.",
    ),
]
SpareOption = Annotated[str, flag("--spare", panel=SPACE, help="Heads to leave alone, as for steer: none,induction.")]
ObjectiveOption = Annotated[
    str | None,
    flag(
        "--objective",
        panel=CHOICE,
        help="The measure to improve, such as pope.adversarial.hr; for scenes chair_s by default.",
    ),
]
NoWorseOption = Annotated[
    str | None,
    flag(
        "--no-worse",
        panel=CHOICE,
        help="Limits on how much other measures may get worse: MEASURE:TOLERANCE,… or none; by default recall:0.02.",
    ),
]
MostDriftOption = Annotated[
    float | None,
    flag(
        "--most-drift", panel=CHOICE, help="Reject edits with a larger drift, in nats per token, before the questions."
    ),
]
DriftImagesOption = Annotated[
    int, flag("--drift-images", panel=CHOICE, help="Number of images to measure drift on, or 0.", min=0)
]
ControlsOption = Annotated[
    int, flag("--controls", panel=CHOICE, help="Number of random controls of the best edit.", min=0)
]
ControlOption = Annotated[str, flag("--control", panel=CHOICE, help="Kind of the random controls: index or norm.")]
TrialsOption = Annotated[int, flag("--trials", panel=SEARCH, help="Number of edits to try.", min=1)]
SamplerOption = Annotated[
    str, flag("--sampler", panel=SEARCH, help="The order of the trials: tpe (Optuna's), random or grid.")
]
SeedOption = Annotated[
    int, flag("--seed", panel=SEARCH, help="Seed of the order, and of the halves of the images.", min=0)
]
PruneOption = Annotated[
    bool, flag("--prune/--no-prune", panel=SEARCH, help="Stop hopeless trials after a part of the questions.")
]

AtOnceOption = Annotated[
    int,
    flag(
        "--at-once",
        panel=SEARCH,
        help="Number of trials per round. All are chosen before the results of any, so it changes what is tried.",
        min=1,
    ),
]
SearchWorkersOption = Annotated[
    int | None,
    flag(
        "--workers",
        panel=SEARCH,
        help="Number of processes for a round, each with a copy of the model; it changes no result. "
        "By default one per GPU, or per CPU core, and at most --at-once.",
        min=1,
    ),
]


@dataclass(frozen=True)
class SpaceFlags(FlagGroup):
    """The space of edits."""

    layers: LayersOption = "each;0.0-0.25;0.25-0.5;0.5-0.75;0.75-1.0;mid"
    heads: HeadsOption = "all"
    k: ModesOption = "1,2,4,8"
    energy: EnergyOption = None
    channel: ChannelOption = "symmetric,full"
    retain: RetainOption = "0,0.5,0.8"
    product: ProductOption = "raw"
    protect: ProtectOption = "none"
    spare: SpareOption = "none"

    def space(self) -> SearchSpace:
        """Return the space. Raises UsageError for a list that cannot be read, or a value that no edit can have."""
        from qkedit.laboratory.tuning.option_lists import alternatives, names, protections, shares, whole_numbers
        from qkedit.laboratory.tuning.space import SearchSpace

        return SearchSpace(
            alternatives(self.layers),
            alternatives(self.heads, "--heads"),
            () if self.k.strip() == "none" else whole_numbers(self.k, "--k"),
            () if self.energy is None else shares(self.energy, "--energy"),
            names(self.channel, "--channel"),  # type: ignore[arg-type]  # the names are checked where they are used
            shares(self.retain, "--retain"),
            protections(self.protect),
            names(self.spare, "--spare"),  # type: ignore[arg-type]
            names(self.product, "--product"),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class ChoiceFlags(FlagGroup):
    """The objective, the guards, and the controls of the best edit."""

    objective: ObjectiveOption = None
    no_worse: NoWorseOption = None
    most_drift: MostDriftOption = None
    controls: ControlsOption = 5
    control: ControlOption = "index"


@dataclass(frozen=True)
class SearchFlags(FlagGroup):
    """The length and the order of a search."""

    trials: TrialsOption = 60
    sampler: SamplerOption = "tpe"
    seed: SeedOption = 0
    prune: PruneOption = True
    drift_images: DriftImagesOption = 4
    at_once: AtOnceOption = 1
    workers: SearchWorkersOption = None

    def settings(self, choice: ChoiceFlags) -> SearchSettings:
        """Return the settings of a search. Raises UsageError for numbers that make no sense."""
        from qkedit.laboratory.tuning.search import SearchSettings

        return SearchSettings(
            self.trials,
            choice.controls,
            choice.control,  # type: ignore[arg-type]  # the name is checked where it is used
            choice.most_drift,
            self.at_once,
            self.workers,
        )
