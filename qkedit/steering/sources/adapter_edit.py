"""An edit in an adapter that qkedit wrote: the factors of a LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.contents import ADAPTER_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError
from qkedit.steering.adapters.peft_files import factor_names
from qkedit.steering.engine.reading import tensors_of
from qkedit.steering.sources.fitting import refuse_non_finite
from qkedit.steering.stored_edits import read_factor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdapterEdit:
    """An implementation of `EditSource`.

    Attributes:
        name: the user's name for the edit.
        files: the files of its directory.
        manifest: the manifest of its directory.
        entries: the places of the factors, by name.
    """

    name: str
    files: CheckpointFiles
    manifest: Manifest
    entries: dict[str, TensorEntry]

    def edited(self, tensor: TensorEdit, before: Tensor, query: HeadRows | None) -> Tensor:
        """Add the factors' product to the tensor, in float64 with one rounding."""
        from qkedit.steering.adapters.factors import merged

        if query is None:
            raise CheckpointError(
                "the heads of its base are unknown",
                where=self.name,
                remedy="pass the architecture records of the base with --architectures",
            )
        layer = next(known for known in self.manifest.adapter or () if known.tensor == tensor.name)
        right_name, left_name = factor_names(layer.module)
        right = read_factor(self.files, self.entries, right_name, layer.sha256_a)
        left = read_factor(self.files, self.entries, left_name, layer.sha256_b)
        after, _ = merged(before, left, right, query, tensor)
        refuse_non_finite(tensor.name, before, after)
        return after


def adapter_edit(name: str, files: CheckpointFiles, manifest: Manifest) -> AdapterEdit:
    """Return the edit of an adapter. Raises CheckpointError if its header is damaged."""
    return AdapterEdit(name, files, manifest, tensors_of(files, ADAPTER_FILE))
