"""The delta: the edited tensors alone, in one safetensors file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qkedit.checkpoint.contents import DELTA_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.tensor_file import lay_out
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.progress import Progress
from qkedit.steering.outputs.tensors import write_file, write_tensors
from qkedit.steering.outputs.writer import WritesEditsAlone, Written
from qkedit.stopwatch import Stopwatch


@dataclass(frozen=True)
class DeltaWriter(WritesEditsAlone):
    """Write only the planned tensors."""

    planned: Mapping[str, TensorEntry]
    stopwatch: Stopwatch
    progress: Progress

    def generated(self, manifest: Manifest) -> dict[str, bytes]:
        """Return nothing: a delta is not a model; `apply` makes one from it."""
        return {}

    @contextmanager
    def writing(self, staging: Path, edits: EditedTensors) -> Iterator[Written]:
        """Write the tensors one after another; see `Writer`."""
        prefix, places = lay_out(self.planned.values(), DELTA_FILE)
        write_file(staging / DELTA_FILE, prefix)
        yield write_tensors(staging, edits, places, self.stopwatch, self.progress)[0]
