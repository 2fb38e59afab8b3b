"""Measure the stages that move and check bytes, each alone, against a plain loop over the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable

from benchmarking.commands import Request
from benchmarking.disk import ByteRange, copy_plainly, pieces, read_plainly, settle, write_plainly
from benchmarking.results import Stage
from benchmarking.timing import Timing, in_turns, seconds_of
from qkedit.checkpoint.io.copying import LinkMode, copy_file
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_tensor import EditedTensor
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.layer_weights import read_tensor, stored_bytes
from qkedit.steering.engine.progress import Silent
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.manifest import DELTA_FILE
from qkedit.steering.outputs.delta import DeltaWriter
from qkedit.steering.plan import SteerPlan
from qkedit.stopwatch import Stopwatch

Edits = list[EditedTensor]


def measure_reading(plan: SteerPlan, request: Request, repeats: int) -> Stage:
    """Measure reading the tensors for the mathematics into memory, one after another."""
    needed = {entry.name: entry for planned in plan.layers for entry in planned.needed_tensors}
    ranges = [(request.model / entry.shard, entry.start, entry.end) for entry in needed.values()]

    def ours() -> None:
        for entry in needed.values():
            read_tensor(plan.checkpoint.files, entry)

    def prepared(action: Callable[[], None]) -> float:
        if request.cache == "cold":
            settle(request.model, "cold")
        else:
            read_plainly(ranges)
        return seconds_of(action)

    return _stage(
        "reading",
        plan.bytes_to_read,
        repeats,
        lambda: prepared(ours),
        lambda: prepared(lambda: read_plainly(ranges)),
    )


def measure_copying(plan: SteerPlan, request: Request, repeats: int) -> Stage:
    """Measure copying every file of the checkpoint."""
    files = plan.checkpoint.files
    sizes = files.sizes()

    def ours() -> None:
        for file in plan.checkpoint.kept_files:
            target = request.output / file
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(files.local_path(file), target, sizes[file], LinkMode.AUTO, lambda length: None)

    def prepared(action: Callable[[], None]) -> float:
        settle(request.model, request.cache)
        seconds = seconds_of(action)
        shutil.rmtree(request.output)
        return seconds

    return _stage(
        "copying",
        plan.checkpoint.kept_bytes,
        repeats,
        lambda: prepared(ours),
        lambda: prepared(lambda: copy_plainly(request.model, request.output, plan.checkpoint.kept_files)),
    )


def measure_writing(plan: SteerPlan, request: Request, repeats: int) -> dict[str, Stage]:
    """Measure writing, hashing and checking edited tensors, which are in memory, as a delta."""
    edits: Edits = list(edited_weights(stored_layers(plan), plan, choose_device(plan.options.device)))
    contents = [stored_bytes(edited.tensor) for edited in edits]
    taken = in_turns(
        repeats,
        {
            "writing, hashing and checks": lambda: _ours_written(plan, request, edits),
            "writing, hashing and checks, floors": lambda: _plainly_written(request, contents),
        },
    )
    ours, floors = taken.values()
    return {
        name: Stage(
            plan.bytes_to_write,
            Timing(tuple(seconds[name] for seconds in ours)),
            Timing(tuple(seconds[name] for seconds in floors)),
        )
        for name in ("writing", "hashing", "checks")
    }


def _stage(name: str, nbytes: int, repeats: int, ours: Callable[[], float], floor: Callable[[], float]) -> Stage:
    taken = in_turns(repeats, {name: ours, f"{name}, floor": floor})
    return Stage(nbytes, *(Timing(tuple(seconds)) for seconds in taken.values()))


def _ours_written(plan: SteerPlan, request: Request, edits: Edits) -> dict[str, float]:
    """Return the seconds by stage of writing a delta from tensors in memory."""
    os.sync()
    stopwatch = Stopwatch()
    request.delta.mkdir()
    with DeltaWriter(plan.tensors, stopwatch, Silent()).writing(request.delta, edits):
        pass
    shutil.rmtree(request.delta)
    return stopwatch.seconds


def _plainly_written(request: Request, contents: list[memoryview]) -> dict[str, float]:
    """Return the seconds of plain loops for the same stages: write and hash the bytes, read and hash them again."""
    os.sync()
    request.delta.mkdir()
    path = request.delta / DELTA_FILE
    ends = list(itertools.accumulate(len(content) for content in contents))
    ranges: list[ByteRange] = [(path, end - len(content), end) for content, end in zip(contents, ends, strict=True)]
    seconds = {
        "hashing": seconds_of(lambda: [hashlib.sha256(content) for content in contents]),
        "writing": seconds_of(lambda: write_plainly(path, contents)),
        "checks": seconds_of(lambda: [hashlib.sha256(content) for content in pieces(ranges)]),
    }
    shutil.rmtree(request.delta)
    return seconds
