"""The results of a benchmark as values; every ratio is computed here, from the medians shown next to it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarking.timing import Timing

SCHEMA = 1


@dataclass(frozen=True)
class CommandRun:
    """One run of a command as a process of its own.

    Attributes:
        seconds: wall time from its start to its end, interpreter and imports included.
        fsync: the part of `seconds` that it waited until the disk held the output.
        inside: the seconds that the command itself reports, by stage; `total` excludes the start-up.
        peak_bytes: its peak resident memory, if it was measured.
        bytes_written: the size of its output.
        cpu_seconds: its CPU time, user and system, if it was measured; other work on the machine affects it much less
            than `seconds`.
    """

    seconds: float
    fsync: float = 0.0
    inside: dict[str, float] | None = None
    peak_bytes: int | None = None
    bytes_written: int | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Command:
    """All runs of one command."""

    runs: tuple[CommandRun, ...]

    @property
    def process(self) -> Timing:
        """The seconds of the whole process without waiting for the disk."""
        return Timing(tuple(run.seconds - run.fsync for run in self.runs))

    @property
    def fsync(self) -> Timing:
        """The seconds of waiting for the disk."""
        return Timing(tuple(run.fsync for run in self.runs))

    @property
    def with_fsync(self) -> Timing:
        """The seconds of the whole process."""
        return Timing(tuple(run.seconds for run in self.runs))

    @property
    def inside(self) -> Timing | None:
        """The seconds that the command reports, without its start-up and without waiting for the disk.

        A full output imports torch while it copies, so that this import is excluded only for a delta.
        """
        totals = tuple(
            run.inside["total"] - run.fsync - (0 if "copying" in run.inside else run.inside.get("start-up", 0))
            for run in self.runs
            if run.inside is not None
        )
        return Timing(totals) if totals else None

    @property
    def stages(self) -> dict[str, float]:
        """The median seconds of each stage; stages run concurrently."""
        inside = [run.inside for run in self.runs if run.inside is not None]
        return {name: statistics.median(seconds[name] for seconds in inside) for name in (inside[0] if inside else ())}

    @property
    def peak_bytes(self) -> int | None:
        """The highest peak of all runs."""
        return max((run.peak_bytes for run in self.runs if run.peak_bytes is not None), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as they are written to JSON."""
        return {
            "process": self.process.as_dict(),
            "fsync": self.fsync.as_dict(),
            "with_fsync": self.with_fsync.as_dict(),
            "inside": self.inside.as_dict() if self.inside else None,
            "stages": self.stages,
            "peak_bytes": self.peak_bytes,
            "bytes_written": self.runs[0].bytes_written,
        }


@dataclass(frozen=True)
class Stage:
    """One stage of `steer`, run alone, and the floor for the same work."""

    nbytes: int | None
    ours: Timing
    floor: Timing


@dataclass(frozen=True)
class Route:
    """Another algorithm for the same numbers, measured on a part of the work."""

    name: str
    measured: str
    seconds: Timing
    times: int  # the number of such parts in all requested layers

    @property
    def extrapolated(self) -> float:
        """The seconds for all layers."""
        return self.times * self.seconds.median


@dataclass(frozen=True)
class Ratio:
    """A ratio of two measured figures. A goal is its intended upper limit."""

    name: str
    numerator: float
    denominator: float
    unit: Literal["s", "bytes"]
    goal: float | None = None

    @property
    def value(self) -> float:
        """The ratio."""
        return self.numerator / self.denominator

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are written to JSON."""
        return asdict(self) | {"ratio": self.value}


# The goals of the project. They are shown next to the figures, and nothing depends on them.
FULL_GOAL, DELTA_GOAL, MATHEMATICS_GOAL = 1.1, 1.3, 1.5
MEMORY_GOAL_BYTES = 800_000_000


@dataclass(frozen=True)
class Benchmark:
    """All results of one run of the benchmark."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    commands: dict[str, Command]
    stages: dict[str, Stage]
    mathematics_floor: dict[str, Timing]
    routes: tuple[Route, ...]

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """The ratios that the benchmark reports."""
        return (*self._of_seconds(), *self._of_memory())

    def as_dict(self) -> dict[str, Any]:
        """Return all results as they are written to JSON."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "commands": {name: command.as_dict() for name, command in self.commands.items()},
            "stages": {
                name: {
                    "bytes": stage.nbytes,
                    "ours": stage.ours.as_dict(),
                    "floor": stage.floor.as_dict(),
                    "ratio": stage.ours.median / stage.floor.median,
                }
                for name, stage in self.stages.items()
            },
            "mathematics_floor": {name: timing.as_dict() for name, timing in self.mathematics_floor.items()},
            "routes": [
                {
                    "name": route.name,
                    "measured": route.measured,
                    "seconds": route.seconds.as_dict(),
                    "times": route.times,
                    "extrapolated": route.extrapolated,
                }
                for route in self.routes
            ],
        }

    def _of_seconds(self) -> Iterator[Ratio]:
        copy, full, delta, apply = (self.commands[name] for name in ("cp -r", "steer", "steer delta", "apply"))
        cp = copy.process.median
        full_inside, delta_inside, apply_inside = (_reported(command) for command in (full, delta, apply))
        yield Ratio("steer, whole process / cp -r", full.process.median, cp, "s", FULL_GOAL)
        yield Ratio("steer, without start-up / cp -r", full_inside.median, cp, "s", FULL_GOAL)
        yield Ratio("steer with fsync / cp -r with fsync", full.with_fsync.median, copy.with_fsync.median, "s")
        yield Ratio("apply, without start-up / cp -r", apply_inside.median, cp, "s")
        parts = [self.stages[name] for name in ("reading", "mathematics", "writing")]
        alone, floor = sum(part.ours.median for part in parts), sum(part.floor.median for part in parts)
        sum_of_parts = "reading + mathematics + writing"
        yield Ratio(f"steer delta, without start-up / {sum_of_parts}", delta_inside.median, alone, "s", DELTA_GOAL)
        yield Ratio(f"steer delta, without start-up / floors of {sum_of_parts}", delta_inside.median, floor, "s")
        for name, stage in self.stages.items():
            goal = MATHEMATICS_GOAL if name == "mathematics" else None
            yield Ratio(f"{name} / its floor", stage.ours.median, stage.floor.median, "s", goal)
        if "mergekit" in self.commands:
            yield Ratio("steer / mergekit", full.process.median, self.commands["mergekit"].process.median, "s", 1.0)

    def _of_memory(self) -> Iterator[Ratio]:
        for name in ("steer", "steer delta"):
            yield Ratio(f"peak memory of {name} / 800 MB", self._peak(name), MEMORY_GOAL_BYTES, "bytes", 1.0)
        if "mergekit" in self.commands:
            peaks = self._peak("steer"), self._peak("mergekit")
            yield Ratio("peak memory of steer / of mergekit", *peaks, "bytes", 1.0)

    def _peak(self, name: str) -> int:
        peak = self.commands[name].peak_bytes
        assert peak is not None, f"the memory of {name} was not measured"
        return peak


def _reported(command: Command) -> Timing:
    assert command.inside is not None, "steer and apply report their seconds"
    return command.inside
