"""A loaded model in the form of a checkpoint's files, so that the code for checkpoints also works in memory.

The model's parameters are presented as one safetensors file that is never written: its header is made from their names
and shapes, and a byte range is read from the parameter that contains it. So plans, inspections and edits work without
a directory and without any special case.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from qkedit.checkpoint.checkpoint import SINGLE_FILE, Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.errors import CheckpointError, UsageError

# safetensors' names of the dtypes of attention weights.
_DTYPES = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32", "torch.float64": "F64"}


class LoadedFiles:
    """The files of a model in memory; see `CheckpointFiles`.

    Args:
        model: a model of transformers, with its weights on any device.

    Raises:
        CheckpointError: weights are offloaded, or none has a plain floating-point dtype.
    """

    revision: str | None = None

    def __init__(self, model: Any) -> None:
        self.name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        # Quantised weights have other dtypes and are left out; the plan then reports the missing projection by name.
        self._parameters = {
            name: parameter for name, parameter in model.named_parameters() if str(parameter.dtype) in _DTYPES
        }
        if not self._parameters:
            raise CheckpointError(
                "has no weights of a floating-point dtype", where=self.name, remedy="load it without quantisation"
            )
        if any(parameter.is_meta for parameter in self._parameters.values()):
            raise CheckpointError(
                "some of its weights are offloaded", where=self.name, remedy="load it with all weights on devices"
            )
        header: dict[str, Any] = {}
        end = 0
        for name, parameter in self._parameters.items():
            start, end = end, end + parameter.numel() * parameter.element_size()
            dtype = _DTYPES[str(parameter.dtype)]
            header[name] = {"dtype": dtype, "shape": list(parameter.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        self._header = len(text).to_bytes(8, "little") + text
        self._starts = [len(self._header) + entry["data_offsets"][0] for entry in header.values()]
        self._names = list(header)
        self._config = json.dumps(model.config.to_dict(), default=str).encode()
        self._size = len(self._header) + end

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the config and of the file that would hold the weights."""
        return {CONFIG_FILE: len(self._config), SINGLE_FILE: self._size}

    def passed_over(self) -> dict[str, str]:
        """Return an empty mapping: every file is in `sizes`."""
        return {}

    def check_unchanged(self) -> None:
        """Do nothing: the holder of the model controls its weights."""

    def read(self, file: str, start: int, end: int) -> bytes:
        """Return exactly bytes [start, end) of one of the two files."""
        buffer = bytearray(end - start)
        self.read_into(file, start, buffer)
        return bytes(buffer)

    def read_into(self, file: str, start: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer`, beginning at `start`. Raises CheckpointError if the file ends before."""
        target = memoryview(buffer).cast("B")
        position = start
        while position < start + len(target):
            source, offset = self._source_at(file, position)
            length = min(len(source) - offset, start + len(target) - position)
            if length <= 0:
                raise CheckpointError(f"ends at byte {position}", where=file, remedy="report the model's name")
            target[position - start : position - start + length] = source[offset : offset + length]
            position += length

    def local_path(self, file: str) -> Path:
        """Raise UsageError: the files of a loaded model are not on disk."""
        raise UsageError("is in memory, not in a file", where=f"{self.name}/{file}", remedy="save the model first")

    def _source_at(self, file: str, position: int) -> tuple[memoryview, int]:
        """Return the block of bytes that contains `position`, and the offset in it."""
        if file == CONFIG_FILE:
            return memoryview(self._config), position
        if position < len(self._header):
            return memoryview(self._header), position
        import torch

        place = bisect_right(self._starts, position) - 1
        parameter = self._parameters[self._names[place]].detach().to("cpu").contiguous()
        content: Any = parameter.flatten().view(torch.uint8).numpy()
        return memoryview(content), position - self._starts[place]


def checkpoint_of(model: Any) -> Checkpoint:
    """Return a loaded model as a checkpoint: its config, and its tensors under their names in memory."""
    return open_checkpoint(LoadedFiles(model))
