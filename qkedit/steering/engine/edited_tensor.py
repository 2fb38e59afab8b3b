"""The item in the stream of edits: one query tensor, its record, and its change in factors.

This module does not import torch, so that writers can be imported while torch is being imported.
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
        heads: the change of each edited head, by its number.
        error: `‖Δ − BA‖ / ‖Δ‖` (Frobenius), of the factors `BA` against the change Δ that they represent; 0 where they
            equal the change.
    """

    heads: Mapping[int, LowRankChange]
    error: float = 0.0


@dataclass(frozen=True)
class EditedTensor:
    """One edited query tensor.

    Attributes:
        name: the tensor's name on the disk.
        tensor: the whole tensor after the edit, on the CPU in its storage dtype.
        record: the edit of each chosen head.
        factored: the change before any rounding; None unless it was requested.
    """

    name: str
    tensor: Tensor
    record: EditRecord
    factored: FactoredEdit | None = None


EditedTensors = Iterable[EditedTensor]
