"""Choose the writer of an output by its layout."""

from __future__ import annotations

from collections.abc import Sequence

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.copying import LinkMode
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.steering.engine.progress import Progress
from qkedit.steering.outputs.delta import DeltaWriter
from qkedit.steering.outputs.full import FullWriter
from qkedit.steering.outputs.originals import KeepingOriginals
from qkedit.steering.outputs.writer import Writer
from qkedit.steering.steer_options import OutputOptions
from qkedit.stopwatch import Stopwatch


def writer_for(
    checkpoint: Checkpoint,
    layers: Sequence[AttentionLayer],
    output: OutputOptions,
    stopwatch: Stopwatch,
    progress: Progress,
) -> Writer:
    """Return the writer for the edits of some layers by the options `output`.

    Args:
        checkpoint: the base.
        layers: the edited layers.
        output: the options of the output.
        stopwatch, progress: called at every stage.

    Raises:
        UnsupportedForm: an adapter is requested, and none can hold an edit of these layers.
    """
    planned = {layer.query.tensor.name: layer.query.tensor for layer in layers}
    if output.layout == "full":
        return full_writer(checkpoint, planned, output, stopwatch, progress)
    if output.layout == "delta":
        return DeltaWriter(planned, stopwatch, progress)
    from qkedit.checkpoint.query_modules import query_modules
    from qkedit.steering.outputs.adapter import AdapterWriter

    modules = query_modules(checkpoint, layers)
    return AdapterWriter(checkpoint, planned, modules, output.rank, stopwatch, progress)


def full_writer(
    checkpoint: Checkpoint,
    planned: dict[str, TensorEntry],
    output: OutputOptions,
    stopwatch: Stopwatch,
    progress: Progress,
) -> Writer:
    """Return the writer of the whole checkpoint with the planned tensors replaced; see `writer_for`."""
    writer = FullWriter(checkpoint, planned, LinkMode(output.link), stopwatch, progress)
    return KeepingOriginals(writer) if output.keep_original else writer
