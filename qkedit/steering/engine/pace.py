"""Limit how far the stages of a run work ahead of one another, so that memory stays bounded for any model width."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qkedit.steering.plan import SteerPlan

# The limit for all tensors that are being read or edited, or are waiting to be written. With torch, which takes
# 230 MB, and the memory of the mathematics, the process then stays below 800 MB.
IN_FLIGHT_BYTES = 384 << 20
MOST_READ = 6


@dataclass(frozen=True)
class Pace:
    """The queue depth between the stages, in layers; with 0, one stage waits while the next one works.

    Attributes:
        read: layers that are read, and wait for the mathematics.
        begun: layers begun by workers that have finished their share of the layer before.
        edited: layers that are edited, and wait to be written.
    """

    read: int = 0
    begun: int = 0
    edited: int = 0

    def bytes_in_flight(self, layer_bytes: int, tensor_bytes: int) -> int:
        """Return the bytes in memory, for layers of which each reads `layer_bytes` and writes `tensor_bytes`.

        A stage in a separate thread holds one layer in addition to those that wait. The mathematics edits a layer in
        place, so the layer it works on is held once.
        """
        read = 1 + self.begun + (self.read + 1 if self.read else 0)
        edited = self.edited + 1 if self.edited else 0
        return read * layer_bytes + edited * tensor_bytes


def pace_of(plan: SteerPlan) -> Pace:
    """Return the pace for the largest layer of a plan."""
    layer_bytes = max(sum(entry.nbytes for entry in planned.needed_tensors) for planned in plan.layers)
    return pace_for(layer_bytes, max(entry.nbytes for entry in plan.tensors.values()))


def pace_for(layer_bytes: int, tensor_bytes: int) -> Pace:
    """Return the pace for layers of `layer_bytes`, of which `tensor_bytes` are written again."""
    pace = Pace()
    # The queue that gains the most time comes first.
    for faster in (
        {"edited": 1},
        {"read": 1},
        {"begun": 1},
        *({"read": count} for count in range(2, MOST_READ + 1)),
    ):
        tried = replace(pace, **faster)
        if tried.bytes_in_flight(layer_bytes, tensor_bytes) <= IN_FLIGHT_BYTES:
            pace = tried
    return pace
