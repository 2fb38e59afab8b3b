"""Limit how far the stages of a run work ahead of one another, so that memory stays bounded for any model width."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qkedit.steering.plan import SteerPlan

# The limit for all tensors that are being read, edited or waiting to be written. With torch, which takes 230 MB, and
# the memory of the mathematics, the process then stays below 800 MB.
IN_FLIGHT_BYTES = 384 << 20
MOST_READ = 6


@dataclass(frozen=True)
class Pace:
    """Layers that wait at each hand-over; with 0, one stage rests while the next one works.

    Attributes:
        read: read, and waiting for the mathematics.
        begun: begun by workers that have nothing left to do for the layer before.
        edited: edited, and waiting to be written.
    """

    read: int = 0
    begun: int = 0
    edited: int = 0

    def bytes_in_flight(self, layer_bytes: int, tensor_bytes: int) -> int:
        """Return what all of this takes, for layers of that many bytes read and written each.

        A stage that works in a thread of its own holds one layer besides those that wait. The mathematics edits a
        layer in place, so that what is worked on is held once.
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
    # What helps most comes first.
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
