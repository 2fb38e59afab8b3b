"""Reports of plug-ins on one request, as values for JSON, a server or a library caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PluginReport:
    """One plug-in's report on one request; a plug-in's own report is a subclass with its figures.

    Attributes:
        warnings: sentences to read before trusting the answer.
    """

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestReport:
    """The report of all plug-ins on one request.

    Attributes:
        prompts: the number of rows in the batch (beams and several answers to one prompt count each).
        images: the number of images in these rows; None if they were not counted, because no plug-in of the request
            needs their cells, and these could not be found. So are the next two.
        image_tokens: the number of placeholders, including those that are not cells.
        cells: the number of image tokens that are cells of a grid.
        plugins: the report of each plug-in, by its name.
        seconds: the host time spent in each plug-in, by its name.
    """

    prompts: int
    images: int | None = 0
    image_tokens: int | None = 0
    cells: int | None = 0
    plugins: Mapping[str, PluginReport] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all plug-ins."""
        return tuple(sentence for report in self.plugins.values() for sentence in report.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)
