"""The figures of each head's edit, as plain numbers for the manifest."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from qkedit.checkpoint.manifest_file import HeadEdit
from qkedit.spectral.query_edit import QueryEdit
from qkedit.steering.plan import PlannedLayer


def head_edits(
    planned: PlannedLayer, edit: QueryEdit, moved: Tensor, bias_effect: Tensor | None
) -> tuple[HeadEdit, ...]:
    """Return the edit of each planned head.

    Args:
        planned: the layer and its planned heads.
        edit: the edit of all of them.
        moved: `‖W_q' − W_q‖ / ‖W_q‖` per head, after rounding.
        bias_effect: `‖(W_q' − W_q)ᵀ b_k‖` per head; None where keys have no bias.
    """
    columns: dict[str, list[Any]] = {
        name: [None] * len(planned.heads) if values is None else values.tolist()
        for name, values in {
            "energy_removed": edit.energy_removed,
            "gap": edit.gap,
            "relative_change": moved,
            "unrealized_share": edit.unrealized_share,
            "leak": edit.leak,
            "scale": edit.scale,
            "key_bias_effect": bias_effect,
        }.items()
    }
    columns["gap"] = [None if math.isnan(gap) else gap for gap in columns["gap"]]
    return tuple(
        HeadEdit(
            head=head,
            key_head=head // planned.layer.group_size,
            suppressed=tuple(edit.suppressed[place, : int(edit.counts[place])].tolist()),
            **{name: values[place] for name, values in columns.items()},
        )
        for place, head in enumerate(planned.heads)
    )
