"""Count the prompts and images of a request for its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkedit.errors import QkeditError
from qkedit.plugins.core.grid import ImageGrids, image_grids
from qkedit.plugins.core.report import RequestReport
from qkedit.plugins.transformers.decoding import prompts_in
from qkedit.plugins.transformers.request import has_images, image_inputs


def counted(config: Any, given: Mapping[str, Any]) -> RequestReport:
    """Return a report with the counts of one call of `generate`; None for images whose cells cannot be found.

    Args:
        config: the config of the whole model.
        given: the arguments of the call by name.
    """
    prompts = prompts_in(given)
    if not has_images(given):
        return RequestReport(prompts=prompts)
    try:
        return counted_in(image_grids(config, given["input_ids"], image_inputs(given)), prompts)
    except (QkeditError, KeyError):  # methods of decoding need no grid
        return RequestReport(prompts=prompts, images=None, image_tokens=None, cells=None)


def counted_in(grids: ImageGrids, prompts: int | None = None) -> RequestReport:
    """Return a report with the counts of a batch.

    Args:
        grids: the grids of the batch.
        prompts: the number of rows; by default that of the grids.
    """
    return RequestReport(
        prompts=grids.batch if prompts is None else prompts,
        images=len(grids.extents),
        image_tokens=int(grids.placeholders.sum()),
        cells=sum(grid.positions.numel() for grid in grids.grids),
    )
