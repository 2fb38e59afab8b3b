"""The edit of a tensor, head by head. This module does not import torch, which manifests do not need."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import HeadEdit, TensorEdit


@dataclass(frozen=True)
class EditRecord:
    """The edit of one query tensor."""

    layer: int
    form: str  # how its heads are stored in the tensor
    norm: str | None  # kind of norm after the queries, folded into the product
    tensor: TensorEntry
    sha256_before: str
    heads: tuple[HeadEdit, ...]

    def with_hash(self, sha256_after: str) -> TensorEdit:
        """Return the manifest's entry of this record, with the hash of the written tensor."""
        return TensorEdit(
            name=self.tensor.name,
            shard=self.tensor.shard,
            layer=self.layer,
            form=self.form,
            norm=self.norm or None,
            dtype=self.tensor.dtype,
            shape=self.tensor.shape,
            sha256_before=self.sha256_before,
            sha256_after=sha256_after,
            heads=self.heads,
        )
