"""Check that an edit fits its base: its tensors hold queries, and it changes only the heads that it lists.

A manifest comes from the same source as its edit, and a forger of the edit can forge its hashes, too. So every path
from an edit to weights runs these checks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.heads import AttentionLayer, HeadRows
from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.manifest_file import EditedChannel, Manifest, TensorEdit
from qkedit.errors import CheckpointError, UnsupportedForm
from qkedit.spectral.suppression import mode_count

if TYPE_CHECKING:
    from torch import Tensor

_logger = logging.getLogger(__name__)
_AGAIN = "make or fetch the edit again"


def query_layers(checkpoint: Checkpoint) -> dict[str, AttentionLayer]:
    """Return every attention layer by the name of the tensor that holds its queries.

    Raises:
        UnsupportedForm: the checkpoint has no query-key product.
    """
    return {layer.query.tensor.name: layer for layer in attention_stack(checkpoint, allow_text_only=True).layers}


def known_query_layers(checkpoint: Checkpoint) -> dict[str, AttentionLayer] | None:
    """Return the result of `query_layers`; None, with a warning, for a checkpoint whose architecture is unknown.

    An edited model may be passed on without the user's records of its architecture, and edits of it still be applied.
    """
    try:
        return query_layers(checkpoint)
    except UnsupportedForm as error:
        _logger.warning("could not check that the edit changes queries alone: %s", error.what)
        return None


def misfits(manifest: Manifest, layers: Mapping[str, AttentionLayer]) -> Iterator[str]:
    """Yield the statements of a manifest that cannot be true of its base.

    Args:
        manifest: the edit's manifest.
        layers: the layers of the base, by the manifest's name of their query tensor.
    """
    for tensor in manifest.tensors:
        layer = layers.get(tensor.name)
        if layer is None:
            yield f"tensor {tensor.name} holds the queries of no layer"
        elif layer.index != tensor.layer:
            yield f"tensor {tensor.name} holds the queries of layer {layer.index}, not of {tensor.layer}"
        else:
            yield from _strange_heads(manifest, tensor, layer)


def refuse_misfits(manifest: Manifest, layers: Mapping[str, AttentionLayer], base: str) -> None:
    """Raise CheckpointError if a manifest cannot be that of an edit of this base.

    Args:
        manifest: the edit's manifest.
        layers: as for `misfits`.
        base: the name of the base, for the message.
    """
    for sentence in misfits(manifest, layers):
        raise CheckpointError(sentence, where=base, remedy=f"give the model that the edit was made from, or {_AGAIN}")


def refuse_other_changes(tensor: TensorEdit, before: Tensor, after: Tensor, query: HeadRows | None) -> None:
    """Refuse an edited tensor that is not finite, or differs from the base outside the heads that the manifest lists.

    Args:
        tensor: its entry in the manifest.
        before: the tensor of the base.
        after: the tensor after the edit, of the same dtype and shape.
        query: the rows of its heads; None if they are unknown, and then not checked.

    Raises:
        CheckpointError: the tensor is refused.
    """
    from qkedit.spectral.changes.combination import differs

    refuse_non_finite(tensor.name, before, after)
    for rows in unlisted_rows(tensor, query) if query is not None else ():
        if bool(differs(before[rows.start : rows.stop], after[rows.start : rows.stop]).any()):
            raise CheckpointError(OTHER_CHANGES, where=f"tensor {tensor.name}", remedy=_AGAIN)


OTHER_CHANGES = "differs from the base outside the heads that the manifest lists"


def refuse_non_finite(name: str, before: Tensor, after: Tensor) -> None:
    """Raise CheckpointError if an edit replaces a number with NaN or infinity."""
    if (before.isfinite() & ~after.isfinite()).any():
        raise CheckpointError("the weights after the edit hold NaN or infinity", where=f"tensor {name}", remedy=_AGAIN)


def unlisted_rows(tensor: TensorEdit, query: HeadRows) -> list[range]:
    """Return the rows of a tensor outside the heads of the manifest, ascending, as ranges with gaps between them.

    Raises:
        CheckpointError: the manifest lists a head that the tensor does not have.
    """
    numbers = sorted(head.head for head in tensor.heads)
    if numbers[-1] >= len(query.starts):
        raise CheckpointError(
            "the edit names heads that the base does not have", where=f"tensor {tensor.name}", remedy=_AGAIN
        )
    others, row = [], 0
    for start in sorted(query.starts[head] for head in numbers):
        others.append(range(row, start))
        row = start + query.head_size
    return [rows for rows in (*others, range(row, query.tensor.shape[0])) if rows]


def _strange_heads(manifest: Manifest, tensor: TensorEdit, layer: AttentionLayer) -> Iterator[str]:
    channel = manifest.options.channel if manifest.options is not None else EditedChannel.FULL
    most = mode_count(channel.value, layer.head_size, layer.query.tensor.shape[1])
    for head in tensor.heads:
        where = f"tensor {tensor.name}, head {head.head}"
        if head.head >= layer.query_heads:
            yield f"{where}: the layer has {layer.query_heads} query heads in the base"
        elif head.key_head != head.head // layer.group_size:
            yield f"{where}: reads key head {head.head // layer.group_size}, not {head.key_head}"
        elif len(head.suppressed) > most:
            yield f"{where}: lists {len(head.suppressed)} modes, and a head of the layer has {most} at most"
