"""Recognise a checkpoint that was converted for MLX: convolutions have another axis order, gains may be shifted by 1.

mlx-lm and mlx-vlm swap the last two axes of a `conv1d.weight` when they convert a model, `[C, 1, K]` to `[C, K, 1]`,
and write `{"format": "mlx"}` into the shards. For some families (Qwen3.5) they add 1 to the gains of norms in the same
step, and their loaders add it if the convolutions still have the original order.
"""

from __future__ import annotations

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.errors import UnsupportedForm


def stored_by_mlx(checkpoint: Checkpoint) -> bool:
    """Return whether the tensors are in MLX's form.

    Raises:
        UnsupportedForm: the shards are marked as MLX's, and their convolutions have not been converted.
    """
    declared = any(shard.metadata.get("format") == "mlx" for shard in checkpoint.shards.values())
    convolutions = [
        entry
        for name, entry in checkpoint.tensors.items()
        if name.endswith("linear_attn.conv1d.weight") and len(entry.shape) == 3 and entry.shape[1] != entry.shape[2]
    ]
    converted = [entry.shape[2] == 1 for entry in convolutions]
    if declared and not all(converted):
        raise UnsupportedForm(
            "the shards are marked as MLX's, but this convolution was not converted, so that norms may be stored in "
            "either way",
            where=f"tensor {convolutions[converted.index(False)].name}",
            remedy="use the checkpoint that it was converted from",
        )
    return declared or any(converted)
