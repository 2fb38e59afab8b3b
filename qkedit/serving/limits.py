"""The limits of one request, and of all requests together."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qkedit.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: bytes of a request's body, and of its fetched images.
        images: images in a request, including those of earlier turns.
        pixels: pixels of all images of a request. A decoded pixel takes 3 bytes, however it was encoded.
        waiting: concurrent requests, including waiting ones.
        seconds: the deadline for a body to arrive, for fetching all images of a request, and for a client to read.
        connections: open connections, if the system permits that many files.
        header_seconds: the deadline for the headers of a request.
    """

    body: int = 32 * MIB
    images: int = 16
    pixels: int = 64_000_000
    waiting: int = 64
    seconds: float = 30.0
    connections: int = 256
    header_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that is not positive."""
        for limit in fields(self):
            if getattr(self, limit.name) <= 0:
                raise UsageError("the limit is not positive", where=limit.name, remedy="give a positive number")
