"""The interface of an output: a consumer of the stream of edits that writes files into a staging directory.

A writer decides where bytes go. `steering/run.py` makes the manifest and the card from the result of a writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import AdapterLayer, Manifest, TensorEdit
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensors


@dataclass(frozen=True)
class Written:
    """The result of a writer: a record per tensor, and the SHA-256 of its bytes after the edit, by name.

    `kept` has the SHA-256 of each file that the writer made next to the weights.
    """

    records: tuple[EditRecord, ...]
    sha256_after: dict[str, str]
    adapter: tuple[AdapterLayer, ...] | None = None  # if factors were written instead of tensors
    kept: Mapping[str, str] = field(default_factory=dict)

    def tensor_edits(self) -> tuple[TensorEdit, ...]:
        """Return the manifest's entry for each tensor."""
        return tuple(record.with_hash(self.sha256_after[record.tensor.name]) for record in self.records)


class WritesEditsAlone:
    """The common base class of writers whose outputs hold no files of the base."""

    planned: Mapping[str, TensorEntry]

    @property
    def bytes_to_write(self) -> int:
        """Return the bytes of the planned tensors."""
        return sum(entry.nbytes for entry in self.planned.values())

    @property
    def left_out(self) -> dict[str, str]:
        """Return nothing: no file of the base is expected in such an output."""
        return {}


class Writer(Protocol):
    """A consumer that writes a stream of edits in one layout; each instance is used once."""

    @property
    def planned(self) -> Mapping[str, TensorEntry]:
        """The tensors of the base that the edits change, by name."""
        ...

    @property
    def bytes_to_write(self) -> int:
        """The number of bytes to write, for the progress report."""
        ...

    @property
    def left_out(self) -> dict[str, str]:
        """The files of the base that the output leaves out although users expect them, with the reasons."""
        ...

    def generated(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the files that describe the output in addition to its manifest, such as a card, by name."""
        ...

    def writing(self, staging: Path, edits: EditedTensors) -> AbstractContextManager[Written]:
        """Write the edits into `staging`.

        Yields:
            The result, as soon as every tensor is written. Other files may still be copied during the block; its end
            waits for the copies and checks them, and an exception in it stops them.

        Raises:
            QkeditError: an edit changed no byte of its tensor, or a file cannot be written or read back unchanged.
        """
        ...
