"""An edit in a delta or a full output that qkedit wrote; only the edited tensors are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE, DELTA_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError
from qkedit.steering.engine.reading import tensors_of
from qkedit.steering.sources.fitting import refuse_other_changes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EditInDirectory:
    """The base class of edits in a directory that qkedit wrote.

    Attributes:
        name: the user's name for the edit.
        files: the files of its directory.
        manifest: the manifest of its directory.
        entries: the places of the edited tensors, or of an adapter's factors, by name.
    """

    name: str
    files: CheckpointFiles
    manifest: Manifest
    entries: dict[str, TensorEntry]


@dataclass(frozen=True)
class StoredEdit(EditInDirectory):
    """An implementation of `EditSource` for edited tensors; `kind` is `delta` or `output`, for messages."""

    kind: str

    def edited(self, tensor: TensorEdit, before: Tensor, query: HeadRows | None) -> Tensor:
        """Return the stored tensor, compared with the manifest."""
        from qkedit.steering.engine.layer_weights import read_tensor, sha256

        entry = self.entries.get(tensor.name)
        whole = entry is not None and (entry.dtype, entry.shape) == (tensor.dtype, tensor.shape)
        content = read_tensor(self.files, self.entries[tensor.name]) if whole else None
        if content is None or sha256(content) != tensor.sha256_after:
            raise CheckpointError(
                f"tensor {tensor.name} is missing or damaged",
                where=DELTA_FILE if self.kind == "delta" else self.name,
                remedy=f"make or fetch the {self.kind} again",
            )
        refuse_other_changes(tensor, before, content, query)
        return content


def stored_edit(name: str, files: CheckpointFiles, manifest: Manifest) -> StoredEdit:
    """Return the edit of a directory with a manifest.

    Raises:
        CheckpointError: its headers are damaged.
    """
    if CONFIG_FILE in files.sizes():
        return StoredEdit(name, files, manifest, open_checkpoint(files).tensors, "output")
    return StoredEdit(name, files, manifest, tensors_of(files, DELTA_FILE), "delta")
