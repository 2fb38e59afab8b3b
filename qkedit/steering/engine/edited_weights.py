"""The stream of edited tensors that every kind of output consumes: directories, deltas, models in memory.

Layers are edited one after another as their bytes arrive: the product of the chosen heads is edited, and the whole
query tensor is passed on with a record of each head's edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import HeadEdit
from qkedit.errors import CheckpointError
from qkedit.spectral.changes.low_rank import LowRankChange, head_changes
from qkedit.spectral.controls import ModeDraws, UnmatchedControlError
from qkedit.spectral.edit import suppress
from qkedit.spectral.factors import NOT_TO_BE_SQUARED, NonFiniteWeightError
from qkedit.spectral.product import QKProduct
from qkedit.spectral.restriction import RestrictedProduct, restricted
from qkedit.spectral.sink import missing_sink
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.edited_tensor import EditedTensor, FactoredEdit
from qkedit.steering.engine.head_edits import head_edits
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.engine.pace import pace_of
from qkedit.steering.engine.reading import StoredLayer
from qkedit.steering.engine.workers import Workers, workers
from qkedit.steering.plan import PlannedLayer, SteerPlan, unmatched_control
from qkedit.stopwatch import Stopwatch

# The largest accepted difference between the rounded change and the requested one, as a share of the latter.
_LARGEST_LOSS = 0.5


@dataclass(frozen=True)
class _EditedHeads:
    """The edits of heads that were edited together, and optionally their changes in factors."""

    heads: tuple[HeadEdit, ...]
    changes: dict[int, LowRankChange]


def edited_weights(
    layers: Iterable[StoredLayer],
    plan: SteerPlan,
    device: torch.device | Sequence[torch.device],
    stopwatch: Stopwatch | None = None,
    *,
    factored: bool = False,
) -> Iterator[EditedTensor]:
    """Yield every planned tensor as it is after the edit, in the order of the layers.

    Rows of heads that were not chosen are bit-equal. The tensor from `layers` is edited in place: the first touch of a
    copy's memory would take longer than the reading did.

    Args:
        layers: the layers of the plan as `stored_layers` reads them; their bytes are changed.
        plan: what to edit.
        device: the device of the mathematics; several GPUs take layers in turn, and each holds one at a time.
        stopwatch: collects the seconds of the mathematics.
        factored: also pass on each change in factors, calculated from the weights before the edit.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or its bytes cannot be read.
        UsageError: a head has too few modes for the requested control.
    """
    stopwatch = stopwatch or Stopwatch()

    def begin(stored: StoredLayer) -> Callable[[], EditedTensor]:
        weights, layer, before = LayerWeights.of(stored), stored.planned.layer, stored.sha256_before
        query = weights.query
        with stopwatch("mathematics"):
            wait = begin_edit(weights, plan, next(turns), pool, factored=factored)

        def ended() -> EditedTensor:
            with stopwatch("mathematics"):
                parts = wait()
            heads = tuple(head for part in parts for head in part.heads)
            record = EditRecord(layer.index, layer.form, layer.norm_kind, layer.query.tensor, before, heads)
            changes = {head: change for part in parts for head, change in part.changes.items()}
            return EditedTensor(record.tensor.name, query, record, FactoredEdit(changes) if factored else None)

        return ended

    devices = [device] if isinstance(device, torch.device) else device
    turns = cycle(devices)
    # With this many edits begun at once, the next device in turn is the one that has just finished.
    ahead = pace_of(plan).begun if len(devices) == 1 else len(devices) - 1
    with workers(*devices) as pool:
        for edited in pool.stream(begin, layers, ahead):
            yield edited
            del edited  # while the next layer is read and edited


def begin_edit(
    weights: LayerWeights, plan: SteerPlan, device: torch.device, pool: Workers, *, factored: bool = False
) -> Callable[[], list[_EditedHeads]]:
    """Begin the whole mathematics of one layer, which edits `weights.query` in place and changes nothing else.

    Returns:
        A function that waits for the end, and returns the edits of the chosen heads, in groups.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or would after the edit; raised now or by the function
            that is returned. Some of the heads may have been edited by then.
    """
    parts = weights.planned.by_key_head() if pool.splits else (weights.planned,)
    return pool.begin(lambda part: _edit_heads(replace(weights, planned=part), plan, device, factored), parts)


def _edit_heads(weights: LayerWeights, plan: SteerPlan, device: torch.device, factored: bool) -> _EditedHeads:
    """Edit the planned heads of `weights` in place: no head's mathematics needs another head's queries."""
    planned, suppression = weights.planned, plan.options.suppression
    product = weights.product(device)
    # An update names directions by rows of queries and keys, so that of a folded product is one of the queries:
    # W_q' G = W_q G + L (R_q W_q G + R_k W_k G), and G cancels.
    decomposed = weights.with_input_gain(product)
    draws = ModeDraws(suppression.seed, planned.layer.index, planned.heads)
    try:
        if plan.options.protect:
            edit = without_sink(weights, decomposed, plan).suppress(suppression, draws)
        else:
            edit = suppress(decomposed, suppression, draws)
    except NonFiniteWeightError as error:
        raise non_finite_weights(planned.layer, error) from None
    except UnmatchedControlError as error:
        where = f"layer {planned.layer.index}, head {planned.heads[error.head]}"
        raise unmatched_control(where, suppression, error.taken, error.left) from None
    rows, moved = edit.update.apply(product, getattr(torch, plan.options.compute_dtype))
    if not moved.isfinite().all():
        raise CheckpointError(
            f"the edited weights exceed the range of {planned.layer.query.tensor.dtype}",
            where=_where(planned.layer.query.tensor),
            remedy="suppress less, or leave the layer out with --layers",
        )
    _refuse_unrealised(planned, edit.counts.cpu(), edit.update.requested(product), moved)
    changes = head_changes(edit.update.left, edit.update.directions(product)) if factored else []
    starts, size = planned.layer.query.starts, planned.layer.query.head_size
    for head, new_rows, count in zip(planned.heads, rows.cpu(), edit.counts.tolist(), strict=True):
        if count:  # a head without modes keeps its bytes, negative zeros included
            weights.query[starts[head] : starts[head] + size] = new_rows
    bias_effect = None
    key_bias = weights.key_bias()
    if key_bias is not None:
        if not key_bias.isfinite().all():
            raise _non_finite((planned.layer.key_bias or planned.layer.key).tensor)
        bias_effect = edit.update.key_bias_effect(product, key_bias)
    # Heads without modes do not change, so they have no factors.
    changed = {head: change for head, change in zip(planned.heads, changes, strict=False) if change.rank}
    return _EditedHeads(head_edits(planned, edit, moved, bias_effect), changed)


def without_sink(weights: LayerWeights, product: QKProduct, plan: SteerPlan) -> RestrictedProduct:
    """Return the product of the planned heads without the query directions that the plan protects.

    Raises:
        UsageError: no run of the model has shown the sink.
    """
    moments = plan.sink.moments.get(weights.planned.layer.index) if plan.sink else None
    if moments is None:
        raise missing_sink()
    return restricted(product, weights.met_by_queries(moments), plan.options.protect)


def _refuse_unrealised(planned: PlannedLayer, counts: Tensor, requested: Tensor, moved: Tensor) -> None:
    """Raise CheckpointError if the change of the stored tensor is not the requested one."""
    lost = (counts > 0) & ((moved - requested).abs() > _LARGEST_LOSS * requested)
    if lost.any():
        place = int(lost.nonzero()[0])
        tensor = planned.layer.query.tensor
        raise CheckpointError(
            f"head {planned.heads[place]} would change by {float(moved[place]):.2g} of its norm instead of "
            f"{float(requested[place]):.2g}, since {tensor.dtype} cannot hold the difference",
            where=_where(tensor),
            remedy="suppress more, leave the head out with --heads or --layers, or store the model in a wider dtype",
        )


def non_finite_weights(layer: AttentionLayer, error: NonFiniteWeightError) -> CheckpointError:
    """Return the error that names the tensor of `layer` in which the mathematics found a NaN or an infinity."""
    return _non_finite((layer.query if error.projection == "query" else layer.key).tensor)


def _non_finite(tensor: TensorEntry) -> CheckpointError:
    return CheckpointError(
        f"the weights hold {NOT_TO_BE_SQUARED}",
        where=_where(tensor),
        remedy="download the shard again or leave the layer out with --layers",
    )


def _where(tensor: TensorEntry) -> str:
    return f"{tensor.shard}, tensor {tensor.name}"
