"""The options of `steer`: the heads to edit, the modes to suppress, and the form of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qkedit.checkpoint.io.copying import LinkMode
from qkedit.checkpoint.manifest_file import EditControl, EditedChannel, ProtectedSink, RecordedOptions
from qkedit.errors import UsageError
from qkedit.selection import Selection, selection_text
from qkedit.spectral.sink import NONE, protected_directions
from qkedit.spectral.suppression import Suppression

ComputeDtype = Literal["float32", "float64"]
Layout = Literal["full", "delta", "lora"]
Role = Literal["none", "induction"]
Product = Literal["raw", "folded"]
Spared = Role | Mapping[int, Sequence[int]]
"""Heads to leave alone: a role, or query heads by layer."""


@dataclass(frozen=True)
class SteerOptions:
    """The layers and heads to edit, what to suppress in them, and the device and precision of the computation.

    Attributes:
        layers: see `qkedit.selection` for the grammar.
        heads: likewise; the same query heads in every layer.
        suppression: the modes to suppress, and by how much.
        compute_dtype: the arithmetic of the write-back; the small cores are always float64.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        allow_text_only: also accept a checkpoint without vision.
        protect: the number of query directions that find the attention sink and stay as they are.
        spare: the role of the heads that stay as they are: `none`, or `induction` for those that copy.
        product: the product whose modes are suppressed: `raw`, or `folded` with the gain of the norm before it.
    """

    layers: str = "mid"
    heads: str = "all"
    suppression: Suppression = field(default_factory=Suppression)
    compute_dtype: ComputeDtype = "float32"
    device: str = "auto"
    allow_text_only: bool = False
    protect: int = 0
    spare: Role = "none"
    product: Product = "raw"

    def __post_init__(self) -> None:
        """Check the options as far as possible without a model."""
        for name in ("layers", "heads"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{getattr(self, name)!r} is not text", where=name, remedy="give it as '3,5,8-12'")
        if self.compute_dtype not in ("float32", "float64"):
            raise UsageError(
                f"{self.compute_dtype!r} is not supported", where="compute-dtype", remedy="choose float32 or float64"
            )
        if self.spare not in get_args(Role):
            raise UsageError(f"there is no role {self.spare!r}", where="spare", remedy="choose none or induction")
        if self.product not in get_args(Product):
            raise UsageError(f"there is no product {self.product!r}", where="product", remedy="choose raw or folded")
        if self.protect and self.suppression.channel != "full":
            raise UsageError(
                f"an edit of the {self.suppression.channel} channel cannot protect directions of the queries",
                where="protect",
                remedy="choose --channel full, or leave it out",
            )

    def recorded(self) -> RecordedOptions:
        """Return the options as the manifest records them: all that determine the output's bytes."""
        suppression = asdict(self.suppression) | {
            "channel": EditedChannel(self.suppression.channel),
            "control": EditControl(self.suppression.control),
        }
        return RecordedOptions(
            layers=self.layers,
            heads=self.heads,
            compute_dtype=self.compute_dtype,
            device=self.device,
            protect=ProtectedSink(directions=self.protect) if self.protect else None,
            spare=None if self.spare == "none" else self.spare,
            product=None if self.product == "raw" else self.product,
            **suppression,
        )


def edit_options(
    layers: Selection,
    heads: Selection,
    suppression: Suppression,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    allow_text_only: bool = False,
    protect: str = NONE,
    spare: Spared = "none",
    product: Product = "raw",
) -> SteerOptions:
    """Return the options of an edit from the arguments of `qkedit.steer`. Raises UsageError for an invalid one.

    Heads by layer in `spare` are not an option: `SteerPlan.sparing` leaves them out of a plan.
    """
    return SteerOptions(
        selection_text(layers),
        selection_text(heads, "heads"),
        suppression,
        compute_dtype,
        device,
        allow_text_only,
        protected_directions(protect),
        spare if isinstance(spare, str) else "none",
        product,
    )


@dataclass(frozen=True)
class OutputOptions:
    """The options of an output.

    Attributes:
        out: the directory to write.
        layout: `full` for a complete checkpoint, `delta` for the edited tensors alone, `lora` for their change as an
            adapter.
        link: the way to take over unchanged shards into a full output.
        overwrite: replace an earlier output, if nothing else lies in it.
        fsync: wait until the disk holds the output.
        verify: read the finished output back and compare all of it with the base before it appears.
        force: replace the directory at `out`, whatever it holds.
        follow_links: copy the targets of the base's links, wherever they are.
        rank: the largest rank of an adapter per layer; None for that of the edit.
        keep_original: keep the original bytes of the edited tensors next to a full output.
    """

    out: Path
    layout: Layout = "full"
    link: str = "auto"
    overwrite: bool = False
    fsync: bool = True
    verify: bool = False
    force: bool = False
    follow_links: bool = False
    rank: int | None = None
    keep_original: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.layout not in get_args(Layout):
            raise UsageError(
                f"there is no layout {self.layout!r}", where="layout", remedy="choose full, delta or lora"
            )
        if self.rank is not None and self.layout != "lora":
            raise UsageError(
                "only an adapter has a rank", where="rank", remedy="choose --layout lora, or leave it out"
            )
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"{self.rank} is less than 1", where="rank", remedy="take a whole number from 1 on")
        if self.keep_original and self.layout != "full":
            raise UsageError(
                "only a full checkpoint can be reverted, so other outputs keep no original bytes",
                where="keep-original",
                remedy="choose --layout full, or leave it out",
            )
        if self.link not in {mode.value for mode in LinkMode}:
            raise UsageError(
                f"{self.link!r} is not a kind of link",
                where="link",
                remedy="choose auto, copy, reflink, hard or symlink",
            )
