"""Report the progress of a run to an observer."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """An observer of a run; it is called from several threads, and must return at once."""

    def start(self, layers: int, total_bytes: int) -> None:
        """Begin: `layers` will be edited, and `total_bytes` brought into the output."""
        ...

    def layer_done(self) -> None:
        """Count one more layer as edited and written."""
        ...

    def bytes_done(self, length: int) -> None:
        """Count `length` more bytes as in the output."""
        ...


class Silent:
    """An observer that ignores everything."""

    def start(self, layers: int, total_bytes: int) -> None:
        """Do nothing."""

    def layer_done(self) -> None:
        """Do nothing."""

    def bytes_done(self, length: int) -> None:
        """Do nothing."""
