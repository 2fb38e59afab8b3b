"""Read the environment that a launcher (`torchrun`, `accelerate launch`) gives to each process."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process's place among those that were started together.

    Attributes:
        rank: its number, from 0; process 0 writes the output and prints messages.
        size: the number of processes, at least two.
        local_rank: its number on this machine.
    """

    rank: int
    size: int
    local_rank: int

    def name_of(self, rank: int) -> str:
        """Return the name of a process for a message."""
        return f"process {rank} of {self.size} (counted from 0)"


def launched() -> Launch | None:
    """Return this process's place among those of a launcher; None for a single process.

    A cluster may set `RANK` and `WORLD_SIZE` for a whole machine, without a launcher. So these count only together
    with `LOCAL_RANK`, which launchers set for each process.
    """
    rank, size, local_rank = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None or size is None or local_rank is None or size < 2 or rank >= size:
        return None
    return Launch(rank, size, local_rank)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
