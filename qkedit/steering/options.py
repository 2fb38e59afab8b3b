"""Everything a user can ask of `steer`, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qkedit.errors import UsageError
from qkedit.spectral.options import Suppression

ComputeDtype = Literal["float32", "float64"]


@dataclass(frozen=True)
class SteerOptions:
    """Which heads of which layers, what to suppress in them, and how to calculate.

    Attributes:
        layers: see `qkedit.steering.selection` for the grammar.
        heads: likewise; the same query heads in every layer.
        suppression: what to suppress.
        compute_dtype: arithmetic of the write-back; the small cores are float64 in any case.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        allow_text_only: edit a checkpoint without vision too.
    """

    layers: str = "mid"
    heads: str = "all"
    suppression: Suppression = field(default_factory=Suppression)
    compute_dtype: ComputeDtype = "float32"
    device: str = "auto"
    allow_text_only: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.compute_dtype not in ("float32", "float64"):
            raise UsageError(
                f"{self.compute_dtype!r} is not offered", where="compute-dtype", remedy="take float32 or float64"
            )

    def recorded(self) -> dict[str, Any]:
        """Return the options as the manifest keeps them: all that decides the output's bytes."""
        options = asdict(self)
        return {"layers": options["layers"], "heads": options["heads"], **options["suppression"]} | {
            "compute_dtype": self.compute_dtype,
            "device": self.device,
        }
