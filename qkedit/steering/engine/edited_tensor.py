"""The item of the stream of edits: one query tensor, what happened to it, and its change in factors.

Free of torch, so that writers can be imported while torch is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkedit.steering.edit_record import EditRecord

if TYPE_CHECKING:
    from torch import Tensor

    from qkedit.spectral.update import QueryUpdate


@dataclass(frozen=True)
class HeadsUpdate:
    """The factored change of some query heads of one tensor, which were edited together.

    `update` is the change as asked for, before any rounding; its first axis counts `heads`. It refers to the weights
    as they were before the edit, with the norms folded into the keys. It lies where the mathematics ran.

    `directions` `[len(heads), m, D]` are those of the residual stream that `update` gave with those weights, so that
    the change of a head is `update.left @ directions`; on the CPU, None where nobody asked for them.
    """

    heads: tuple[int, ...]
    update: QueryUpdate
    directions: Tensor | None = None


@dataclass(frozen=True)
class EditedTensor:
    """One edited query tensor.

    Attributes:
        name: on the disk.
        tensor: the whole tensor after the edit, on the CPU in its storage dtype.
        record: what happened to each chosen head.
        update: the change in factors, for each group of heads that was edited together, in the order of the record's
            heads; empty where the tensor was read from a delta, which does not hold the factors.
    """

    name: str
    tensor: Tensor
    record: EditRecord
    update: tuple[HeadsUpdate, ...] = ()


EditedTensors = Iterable[EditedTensor]
