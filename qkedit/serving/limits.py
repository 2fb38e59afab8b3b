"""How much one request, and all of them together, may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qkedit.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a request may bring.

    Attributes:
        body: bytes of a request's body, and of its images that are fetched.
        images: images in a request, those of earlier turns included.
        pixels: pixels of all of them together. One pixel takes 3 bytes once it is decoded, whatever it took before.
        waiting: requests that are under way at the same time, waiting ones included.
        seconds: for a body to arrive, for all images of a request to be fetched, and for a client to read on.
        connections: that are open at the same time, if the system has files for them.
        header_seconds: for the headers of a request to arrive.
    """

    body: int = 32 * MIB
    images: int = 16
    pixels: int = 64_000_000
    waiting: int = 64
    seconds: float = 30.0
    connections: int = 256
    header_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that lets nothing pass."""
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise UsageError("the limit lets nothing pass", where=limit.name, remedy="give a positive number")
