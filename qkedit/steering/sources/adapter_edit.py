"""An edit in an adapter that qkedit wrote: the factors of a LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.contents import ADAPTER_FILE
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError
from qkedit.steering.adapters.peft_files import factor_names
from qkedit.steering.engine.reading import tensors_of
from qkedit.steering.sources.fitting import refuse_non_finite
from qkedit.steering.sources.stored_edit import EditInDirectory
from qkedit.steering.stored_edits import read_factor

if TYPE_CHECKING:
    from torch import Tensor


class AdapterEdit(EditInDirectory):
    """An implementation of `EditSource` for the factors of an adapter."""

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
