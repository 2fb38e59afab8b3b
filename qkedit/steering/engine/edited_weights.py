"""The stream of edited tensors that every kind of output consumes: directories, deltas, models in memory.

Layer by layer, as the bytes come in: the product of the chosen heads is edited, and the whole query tensor is handed
on with a record of what happened to each head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import AttentionLayer, HeadNorm, HeadRows
from qkedit.checkpoint.architecture.schema import NormKind
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.errors import CheckpointError
from qkedit.spectral.controls import ModeDraws, UnmatchedControlError
from qkedit.spectral.edit import suppress
from qkedit.spectral.factors import NonFiniteWeightError, on_device
from qkedit.spectral.low_rank import LowRankChange, head_changes
from qkedit.spectral.norms import fold_keys, norm_map
from qkedit.spectral.product import QKProduct
from qkedit.steering.edit_record import EditRecord, HeadEdit
from qkedit.steering.engine.edited_tensor import EditedTensor, FactoredEdit
from qkedit.steering.engine.head_edits import head_edits
from qkedit.steering.engine.pace import pace_of
from qkedit.steering.engine.reading import StoredLayer, read_bytes
from qkedit.steering.engine.stopwatch import Stopwatch
from qkedit.steering.engine.workers import Workers, workers
from qkedit.steering.plan import PlannedLayer, SteerPlan, unmatched_control

# How far the change that rounding leaves may be from the one asked for, as a share of that.
_LARGEST_LOSS = 0.5
TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class LayerWeights:
    """The stored weights of one planned layer, on the CPU in their storage dtype, by tensor name."""

    planned: PlannedLayer
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, files: CheckpointFiles, planned: PlannedLayer, entries: Iterable[TensorEntry] | None = None) -> Self:
        """Read `entries` of one layer, by default what its mathematics needs."""
        entries = planned.needed_tensors if entries is None else entries
        return cls(planned, {entry.name: read_tensor(files, entry) for entry in entries})

    @classmethod
    def of(cls, stored: StoredLayer) -> Self:
        """Take what was read already, without a copy."""
        entries = stored.planned.needed_tensors
        return cls(stored.planned, {entry.name: _tensor_of(stored.contents[entry.name], entry) for entry in entries})

    @property
    def query(self) -> Tensor:
        """The whole tensor that holds the queries, `[rows, D]`."""
        return self.tensors[self.planned.layer.query.tensor.name]

    def product(self, device: torch.device, rotation: Tensor | None = None) -> QKProduct:
        """Return the product of the chosen heads on `device`, norms folded in.

        `rotation` `[d_h, d_h]`, if given, stands between query and key, behind their norms: `R_nᵀ` gives the product
        at relative offset n.
        """
        keys, key_head = self._folded(self._rows(self.planned.layer.key, self.planned.key_heads), between=rotation)
        query = self._rows(self.planned.layer.query, self.planned.heads)
        return QKProduct(on_device(query, device), on_device(keys, device), key_head)

    def query_constant_seen_by_keys(self) -> Tensor | None:
        """Return `(F_k W_k)ᵀ (F_q b_q + s_q)`, float64 `[H, D]`; None where queries have neither bias nor shift.

        It is what the constant part of each chosen head's queries adds to the logit of a key's input. The bias must
        have been read.
        """
        layer, heads = self.planned.layer, self.planned.heads
        shift = layer.query_norm.shift if layer.query_norm else None
        if layer.query_bias is None and shift is None:
            return None
        constant = torch.zeros(len(heads), layer.head_size, 1, dtype=torch.float64)
        if layer.query_bias is not None:
            bias = self._numbers(layer.query_bias, heads).double().unsqueeze(-1)
            constant = self._norm_maps(layer.query_norm, heads) @ bias
        if shift is not None:
            constant = constant + self._numbers(shift, heads).double().unsqueeze(-1)
        keys = self._rows(layer.key, self.planned.key_heads)
        # Through the keys' norm first: that is a product of d_h numbers, and the keys are D times as many.
        constant = self._norm_maps(layer.key_norm, self.planned.key_heads)[self._key_head()].mT @ constant
        return torch.cat(
            [keys[key_head].double().mT @ part for key_head, part in zip(self._key_head(), constant, strict=True)], -1
        ).mT

    def key_bias(self) -> Tensor | None:
        """Return what is added to the keys whatever the token, `[H_kv, d_h]`, folded like them; None for nothing."""
        layer, heads = self.planned.layer, self.planned.key_heads
        bias = self._numbers(layer.key_bias, heads).unsqueeze(-1) if layer.key_bias else None
        if bias is None and (layer.key_norm is None or layer.key_norm.shift is None):
            return None
        if bias is None:
            bias = torch.zeros(len(heads), layer.head_size, 1)
        shift = layer.key_norm.shift if layer.key_norm else None
        return self._folded(bias, shift=self._numbers(shift, heads).unsqueeze(-1) if shift else None)[0].squeeze(-1)

    def _rows(self, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
        return head_rows(self.tensors[rows.tensor.name], rows, heads)

    def _numbers(self, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
        """The same of a bias or a norm, which is numbers in storage order whatever its shape: `[heads, head_size]`."""
        return head_rows(self.tensors[rows.tensor.name].flatten(), rows, heads)

    def _folded(
        self, keys: Tensor, shift: Tensor | None = None, between: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys `[H_kv, d_h, …]` as the raw queries meet them, and the one that each chosen query head reads.

        `shift` is added to the keys behind their norm; `between` maps what is then there.
        """
        layer, key_heads, key_head = self.planned.layer, self.planned.key_heads, self._key_head()
        if layer.query_norm is None and layer.key_norm is None and between is None:
            return keys, key_head
        keys = self._norm_maps(layer.key_norm, key_heads) @ keys.double()
        if shift is not None:
            keys = keys + shift.double()
        if between is not None:
            keys = between.double() @ keys
        return fold_keys(keys, key_head, self._norm_maps(layer.query_norm, self.planned.heads))

    def _key_head(self) -> Tensor:
        """Which of the planned key heads each chosen query head reads, `[H]`."""
        key_heads, group_size = self.planned.key_heads, self.planned.layer.group_size
        return torch.tensor([key_heads.index(head // group_size) for head in self.planned.heads])

    def _norm_maps(self, norm: HeadNorm | None, heads: tuple[int, ...]) -> Tensor:
        ones = torch.ones(len(heads), self.planned.layer.head_size)
        if norm is None:
            return norm_map("l2", ones)
        if norm.gain is None:
            return norm_map(NormKind.RMS if norm.kind is NormKind.ONE_PLUS_RMS else norm.kind, ones)
        return norm_map(norm.kind, self._numbers(norm.gain, heads))


@dataclass(frozen=True)
class _EditedHeads:
    """What happened to heads that were edited together, and the changes in factors if they were asked for."""

    heads: tuple[HeadEdit, ...]
    changes: dict[int, LowRankChange]


def read_tensor(files: CheckpointFiles, entry: TensorEntry) -> Tensor:
    """Read one tensor by its byte range, onto the CPU in its storage dtype."""
    return _tensor_of(read_bytes(files, entry), entry)


def _tensor_of(content: bytearray, entry: TensorEntry) -> Tensor:
    return torch.frombuffer(content, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape)


def stored_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor as they stand in a file, without a copy."""
    array: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(array)


def sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(stored_bytes(tensor)).hexdigest()


def head_rows(tensor: Tensor, rows: HeadRows, heads: tuple[int, ...]) -> Tensor:
    """Return the rows of `heads`, `[len(heads), head_size, …]`; a view where they stand one after another."""
    size, starts = rows.head_size, [rows.starts[head] for head in heads]
    if all(start == starts[0] + place * size for place, start in enumerate(starts)):
        return tensor[starts[0] : starts[0] + len(heads) * size].unflatten(0, (len(heads), size))
    return torch.stack([tensor[start : start + size] for start in starts])


def edited_weights(
    layers: Iterable[StoredLayer],
    plan: SteerPlan,
    device: torch.device,
    stopwatch: Stopwatch | None = None,
    *,
    factored: bool = False,
) -> Iterator[EditedTensor]:
    """Yield every planned tensor as it is after the edit, in the order of the layers.

    Rows of heads that were not chosen are bit-equal. The tensor is what `layers` gave, edited in place: the first
    touch of a copy's memory would take longer than the reading did.

    Args:
        layers: what `stored_layers` reads of the plan; the bytes are changed.
        plan: what to edit.
        device: where the mathematics runs.
        stopwatch: collects the seconds of the mathematics.
        factored: hand on each change in factors, too; they are made from the weights before the edit.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or its bytes cannot be read.
        UsageError: a head has too few modes for the control that was asked for.
    """
    stopwatch = stopwatch or Stopwatch()

    def begin(stored: StoredLayer) -> Callable[[], EditedTensor]:
        weights, layer, before = LayerWeights.of(stored), stored.planned.layer, stored.sha256_before
        query = weights.query
        with stopwatch("mathematics"):
            wait = begin_edit(weights, plan, device, pool, factored=factored)

        def ended() -> EditedTensor:
            with stopwatch("mathematics"):
                parts = wait()
            heads = tuple(head for part in parts for head in part.heads)
            record = EditRecord(layer.index, layer.form, layer.norm_kind, layer.query.tensor, before, heads)
            changes = {head: change for part in parts for head, change in part.changes.items()}
            return EditedTensor(record.tensor.name, query, record, FactoredEdit(changes) if factored else None)

        return ended

    with workers(device) as pool:
        for edited in pool.stream(begin, layers, pace_of(plan).begun):
            yield edited
            del edited  # while the next layer is read and edited


def begin_edit(
    weights: LayerWeights, plan: SteerPlan, device: torch.device, pool: Workers, *, factored: bool = False
) -> Callable[[], list[_EditedHeads]]:
    """Begin all the mathematics of one layer, which edits `weights.query` in place, and nothing else.

    Returns:
        What waits for the end, and returns what happened to the chosen heads, in groups.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or would have to after the edit; now or when it is waited for.
            Some of the heads may have been edited by then.
    """
    parts = weights.planned.by_key_head() if pool.splits else (weights.planned,)
    return pool.begin(lambda part: _edit_heads(replace(weights, planned=part), plan, device, factored), parts)


def _edit_heads(weights: LayerWeights, plan: SteerPlan, device: torch.device, factored: bool) -> _EditedHeads:
    """Edit the planned heads of `weights` in place: no head's mathematics needs another head's queries."""
    planned, suppression = weights.planned, plan.options.suppression
    product = weights.product(device)
    try:
        edit = suppress(product, suppression, ModeDraws(suppression.seed, planned.layer.index, planned.heads))
    except NonFiniteWeightError as error:
        raise non_finite_weights(planned.layer, error) from None
    except UnmatchedControlError as error:
        where = f"layer {planned.layer.index}, head {planned.heads[error.head]}"
        raise unmatched_control(where, error.taken, error.left) from None
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
    # Of heads without modes nothing changes, so they have no factors.
    changed = {head: change for head, change in zip(planned.heads, changes, strict=False) if change.rank}
    return _EditedHeads(head_edits(planned, edit, moved, bias_effect), changed)


def _refuse_unrealised(planned: PlannedLayer, counts: Tensor, requested: Tensor, moved: Tensor) -> None:
    """Raise CheckpointError where what stands in storage is another change than the one that was asked for."""
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
    """Return the error that names the tensor of `layer` in which the mathematics met a NaN or an infinity."""
    return _non_finite((layer.query if error.projection == "query" else layer.key).tensor)


def _non_finite(tensor: TensorEntry) -> CheckpointError:
    return CheckpointError(
        "the weights hold NaN or infinity",
        where=_where(tensor),
        remedy="download the shard again or leave the layer out with --layers",
    )


def _where(tensor: TensorEntry) -> str:
    return f"{tensor.shard}, tensor {tensor.name}"
