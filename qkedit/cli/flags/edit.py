"""The flags of an edit: layers, heads and modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qkedit.cli.flags.flag import MODE, flag, rank_of_source
from qkedit.cli.flags.groups import FlagGroup
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.cli.output import Output
    from qkedit.steering.steer_options import SteerOptions

Share = TypeVar("Share", float, str)

EDIT = "Layers, heads and modes"

LayersOption = Annotated[
    str, flag("--layers", panel=EDIT, help="Layers: 10-20, 3,5,8-12, all, mid or 0.35-0.7; both ends inclusive.")
]
HeadsOption = Annotated[str, flag("--heads", panel=EDIT, help="Query heads: all or 0,3,8-12.")]
ModesOption = Annotated[
    int | None, flag("--k", "-k", panel=EDIT, help="Number of dominant modes to suppress per head; 4 by default.")
]
EnergyOption = Annotated[
    float | None,
    flag("--energy", panel=EDIT, help="Instead of --k: suppress as many modes as carry this share of the energy."),
]
RetainOption = Annotated[
    float, flag("--retain", panel=EDIT, help="Share of each suppressed mode to keep, 0 to below 1.")
]
OldRetainOption = Annotated[
    float | None, flag("--residual", help="The same as --retain, by its old name.", hidden=True)
]
ChannelOption = Annotated[
    str, flag("--channel", panel=EDIT, help="Part of the product to edit: full, symmetric or antisymmetric.")
]
ProductOption = Annotated[
    str,
    flag(
        "--product",
        panel=EDIT,
        help="Product whose modes are chosen: raw, of the weights alone, or folded, with the gain of the norm before "
        "them.",
    ),
]
ProtectOption = Annotated[
    str,
    flag(
        "--protect",
        panel=EDIT,
        help="Query directions to leave alone: none, or sink or sink:4 for those that find the first token. "
        "Runs the model on one token.",
    ),
]
SpareOption = Annotated[
    str,
    flag(
        "--spare",
        panel=EDIT,
        help="Heads to leave alone: none, or induction for those that copy. Runs the model on random tokens.",
    ),
]
ControlOption = Annotated[
    str, flag("--control", panel=EDIT, help="A random control instead of the edit: none, index or norm.")
]
SeedOption = Annotated[int, flag("--seed", panel=EDIT, help="Seed of the control's random draws.")]
ComputeDtypeOption = Annotated[
    str,
    flag("--compute-dtype", panel=MODE, help="Arithmetic: float32 or float64. The small cores are always float64."),
]


@dataclass(frozen=True)
class EditFlags(FlagGroup):
    """The edit."""

    layers: LayersOption = "mid"
    heads: HeadsOption = "all"
    k: ModesOption = None
    energy: EnergyOption = None
    retain: RetainOption = 0.0
    residual: OldRetainOption = None
    channel: ChannelOption = "full"
    product: ProductOption = "raw"
    protect: ProtectOption = "none"
    spare: SpareOption = "none"

    def request(
        self,
        context: typer.Context,
        output: Output,
        *,
        control: str = "none",
        seed: int = 0,
        device: str = "cpu",
        compute_dtype: str = "float32",
        allow_text_only: bool = False,
    ) -> SteerOptions:
        """Return the request from these and the other flags. Raises UsageError if they contradict each other."""
        from qkedit.spectral.suppression import Suppression
        from qkedit.steering.steer_options import edit_options

        k, energy = self._modes(context)
        suppression = Suppression(
            Suppression.k if k is None else k,
            energy,
            share_that_stays(context, output, self.retain, self.residual),
            self.channel,  # type: ignore[arg-type]  # checks the name itself, as for the next ones
            control,  # type: ignore[arg-type]
            seed,
        )
        return edit_options(
            self.layers,
            self.heads,
            suppression,
            device,
            compute_dtype,  # type: ignore[arg-type]
            allow_text_only,
            self.protect,
            self.spare,  # type: ignore[arg-type]
            self.product,  # type: ignore[arg-type]
        )

    def _modes(self, context: typer.Context) -> tuple[int | None, float | None]:
        """Return k and the energy, one of them None: the one with the higher precedence replaces the other."""
        if self.k is None or self.energy is None:
            return self.k, self.energy
        rank_of_k, rank_of_energy = rank_of_source(context, "k"), rank_of_source(context, "energy")
        if rank_of_k == rank_of_energy:
            raise UsageError("both say how many modes to take", where="--k and --energy", remedy="give one of them")
        return (self.k, None) if rank_of_k < rank_of_energy else (None, self.energy)


def share_that_stays(context: typer.Context, output: Output, retain: Share, residual: Share | None) -> Share:
    """Return the value of --retain, or with a warning that of its old name --residual if it has precedence.

    Raises:
        UsageError: both were given in one place.
    """
    if residual is None:
        return retain
    output.warn("--residual is now --retain; the old name works until version 1.0")
    rank_of_retain, rank_of_residual = rank_of_source(context, "retain"), rank_of_source(context, "residual")
    if rank_of_retain == rank_of_residual:
        raise UsageError("both say which share stays", where="--retain and --residual", remedy="give --retain alone")
    return retain if rank_of_retain < rank_of_residual else residual
