"""What plug-ins say of one request, as values that JSON, a server and a library caller take alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PluginReport:
    """What one plug-in did to one request; a plug-in's own report is a subclass with its figures.

    Attributes:
        warnings: sentences that the reader should know before trusting the answer.
    """

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestReport:
    """What the plug-ins did to one request.

    Attributes:
        prompts: rows of the batch (beams and several answers to one prompt count each).
        images: images in these rows.
        image_tokens: placeholders, including those that are not cells.
        cells: image tokens that are cells of a grid.
        plugins: each plug-in's own report, by its name.
        seconds: host time spent in each plug-in, by its name.
    """

    prompts: int
    images: int = 0
    image_tokens: int = 0
    cells: int = 0
    plugins: Mapping[str, PluginReport] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all plug-ins."""
        return tuple(sentence for report in self.plugins.values() for sentence in report.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return asdict(self)
