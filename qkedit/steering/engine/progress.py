"""Report the progress of a run to a watcher."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A watcher of a run; it is called from several threads, and must return at once."""

    def start(self, layers: int, total_bytes: int) -> None:
        """The work begins: so many layers to edit, so many bytes to bring into the output."""
        ...

    def layer_done(self) -> None:
        """One more layer was edited and written."""
        ...

    def bytes_done(self, length: int) -> None:
        """So many more bytes are in the output."""
        ...


class Silent:
    """A watcher that ignores everything."""

    def start(self, layers: int, total_bytes: int) -> None:
        """Say nothing."""

    def layer_done(self) -> None:
        """Say nothing."""

    def bytes_done(self, length: int) -> None:
        """Say nothing."""
