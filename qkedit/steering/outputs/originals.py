"""Keep the bytes that an edit replaces next to the full output, so that it can be undone without the base.

One file holds the original bytes of the edited tensors, by their names, and of the base's card and manifest, which the
output's replace. It is in the safetensors format, but its name does not end in `.safetensors`: vLLM takes every
`*.safetensors` next to a model without an index for a shard, and downloads those in folders too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qkedit.checkpoint.contents import ORIGINALS_FILE
from qkedit.checkpoint.io.file_errors import open_descriptor
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.checkpoint.io.stamps import changed_meanwhile
from qkedit.checkpoint.io.tensor_file import lay_out
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.reading import sha256_of, whole_file
from qkedit.steering.outputs.full import FullWriter
from qkedit.steering.outputs.names import files_giving_way, name_in_output
from qkedit.steering.outputs.tensors import copy_tensor, write_file
from qkedit.steering.outputs.writer import Written


@dataclass(frozen=True)
class KeepingOriginals:
    """Write the full output, and next to it the original bytes of the edited tensors."""

    writer: FullWriter

    @property
    def planned(self) -> Mapping[str, TensorEntry]:
        """Return the tensors that the edits change."""
        return self.writer.planned

    @property
    def bytes_to_write(self) -> int:
        """Return the bytes of the full output and of the originals."""
        return self.writer.bytes_to_write + sum(entry.nbytes for entry in self._kept())

    @property
    def left_out(self) -> dict[str, str]:
        """Return the files of the base that no output may hold."""
        return self.writer.left_out

    def generated(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the model card."""
        return self.writer.generated(manifest)

    @contextmanager
    def writing(self, staging: Path, edits: EditedTensors) -> Iterator[Written]:
        """Write the full output, and the originals when all tensors are written; see `Writer`."""
        with self.writer.writing(staging, edits) as written:
            with self.writer.stopwatch("writing"):
                before = {record.tensor.name: record.sha256_before for record in written.records}
                digest = self._keep(staging, before)
            yield replace(written, kept={ORIGINALS_FILE: digest})

    def _kept(self) -> list[TensorEntry]:
        """Return the entries to keep, as they are in the base; a file that is in the output has its name there."""
        checkpoint = self.writer.checkpoint
        sizes = checkpoint.files.sizes()
        files = [
            replace(whole_file(file, sizes), name=name_in_output(checkpoint, file) or file)
            for file in files_giving_way(checkpoint)
        ]
        return [*self.planned.values(), *files]

    def _keep(self, staging: Path, before: Mapping[str, str]) -> str:
        """Write the originals, compare them with the hashes before the edit, and return the SHA-256 of the file."""
        base, path = self.writer.checkpoint.files, staging / ORIGINALS_FILE
        entries = self._kept()
        prefix, places = lay_out(entries, ORIGINALS_FILE)
        write_file(path, prefix)
        with open_descriptor(path, os.O_WRONLY | os.O_NOFOLLOW) as descriptor:
            for entry in entries:
                digest = copy_tensor(base, entry, staging, places[entry.name], descriptor, self.writer.progress)
                if before.get(entry.name, digest) != digest:
                    raise changed_meanwhile(entry.shard)
        files = LocalFiles(staging)
        return sha256_of(files, whole_file(ORIGINALS_FILE, {ORIGINALS_FILE: files.size(ORIGINALS_FILE)}))
