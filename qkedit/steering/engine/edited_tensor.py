"""The item in the stream of edits: one query tensor, its record, and its change in factors.

Free of torch, so that writers can be imported while torch is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkedit.steering.edit_record import EditRecord

if TYPE_CHECKING:
    from torch import Tensor

    from qkedit.spectral.changes.low_rank import LowRankChange


@dataclass(frozen=True)
class FactoredEdit:
    """The change of one query tensor in factors.

    Attributes:
        heads: the change of each head that was edited, by its number.
        error: `‖Δ − BA‖ / ‖Δ‖` (Frobenius) of the factors `BA` against the change Δ they stand for; 0 where they are
            the change itself.
    """

    heads: Mapping[int, LowRankChange]
    error: float = 0.0


@dataclass(frozen=True)
class EditedTensor:
    """One edited query tensor.

    Attributes:
        name: on the disk.
        tensor: the whole tensor after the edit, on the CPU in its storage dtype.
        record: what happened to each chosen head.
        factored: the change before any rounding; None where nobody asked for it.
    """

    name: str
    tensor: Tensor
    record: EditRecord
    factored: FactoredEdit | None = None


EditedTensors = Iterable[EditedTensor]
