"""Compute a checkpoint's query-key spectra: plan → read → spectra, one layer at a time, without writing anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.schema import Rotation
from qkedit.errors import UsageError, counted
from qkedit.inspection.positions import rotary_positions
from qkedit.selection import describe
from qkedit.spectral.analysis import bias_share, dominant_subspaces, kept_share, spectra, symmetric_share
from qkedit.spectral.factors import NonFiniteWeightError
from qkedit.spectral.mode_selection import effective_rank, gap, top_energy
from qkedit.spectral.product import QKProduct
from qkedit.spectral.rotary import AXES
from qkedit.spectral.suppression import NEAR_EQUAL, Suppression
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_weights import non_finite_weights, without_sink
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.engine.prefetch import prefetch
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.workers import Workers, workers
from qkedit.steering.plan import SteerPlan

Offset = tuple[int, int, int]  # temporal, height, width; all equal where there is only one position
NO_OFFSET: Offset = (0, 0, 0)
# Below one percent of a logit's variance, biases do not mislead.
NOTABLE_BIAS = 0.01


@dataclass(frozen=True)
class KeptShare:
    """The share (0–1) of a dominant subspace at offset 0 that is in the one at another offset; None if it is empty."""

    query_side: float | None
    key_side: float | None


@dataclass(frozen=True)
class HeadSpectrum:
    """The spectrum of one query head with its key head. Shares are 0–1, or None where they have no meaning."""

    head: int
    key_head: int
    singular_values: tuple[float, ...]  # σ, descending; in the channels |λ|, or ω of each plane
    rank: int
    k: int  # modes counted as dominant: never more than the rank
    energy_top_k: float
    effective_rank: float
    symmetric_share: float | None
    gap_at_k: float | None  # σ_k / σ_{k+1}
    unrealized_share: float | None = None  # channels: share of the dominant modes that the queries cannot write
    leak: float | None = None  # channels: share that would leak into the other channel
    bias_share: float | None = None  # of a logit's variance, for inputs of unit variance; None without biases
    kept: dict[str, KeptShare] | None = None  # at an offset: by the part of the position that changed


@dataclass(frozen=True)
class LayerSpectra:
    """The spectra of the selected heads of one layer."""

    layer: int
    heads: tuple[HeadSpectrum, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`."""

    model: str
    revision: str | None
    channel: str
    offset: Offset
    wanted: str  # what counts as dominant: "k 4" or "energy 0.9"
    layers: tuple[LayerSpectra, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        fields = asdict(self)
        del fields["warnings"]  # the envelope of the JSON has them
        if len(set(self.offset)) == 1:
            fields["offset"] = self.offset[0]
        return fields


def inspect(plan: SteerPlan, offset: Offset = NO_OFFSET, progress: Progress | None = None) -> Inspection:
    """Return the spectra of every planned head.

    Args:
        plan: the layers and heads; its suppression gives the `channel`, and by `k` or `energy` the dominant modes.
        offset: query position − key position.
        progress: called with the progress of the run.

    Raises:
        CheckpointError: a weight holds NaN or infinity, bytes cannot be read, or the positions are not supported.
        UsageError: the offset has three parts, and the model's positions have only one.
    """
    layers = tuple(layer_spectra(plan, offset, progress))
    suppression = plan.options.suppression
    return Inspection(
        model=plan.checkpoint.files.name,
        revision=plan.checkpoint.files.revision,
        channel=suppression.channel,
        offset=offset,
        wanted=f"k {suppression.k}" if suppression.energy is None else f"energy {suppression.energy:g}",
        layers=layers,
        warnings=tuple(_warnings(plan, layers, offset)),
    )


def layer_spectra(
    plan: SteerPlan, offset: Offset = NO_OFFSET, progress: Progress | None = None
) -> Iterator[LayerSpectra]:
    """Yield the spectra layer by layer, reading the next layer in the meantime; see `inspect`."""
    rotations = {planned.layer.index: _rotations(plan, planned.layer, offset) for planned in plan.layers}
    device = choose_device(plan.options.device)
    with workers(device) as pool:
        for weights in planned_weights(plan, progress, query_bias=True):
            parts = pool.map(lambda part: _heads_of(plan, part, device, rotations), split(weights, pool))
            yield LayerSpectra(weights.planned.layer.index, tuple(head for part in parts for head in part))


def planned_weights(
    plan: SteerPlan, progress: Progress | None = None, *, query_bias: bool = False
) -> Iterator[LayerWeights]:
    """Yield the weights of each planned layer, optionally with the query bias, reading ahead.

    Raises:
        CheckpointError: bytes cannot be read.
    """
    progress = progress or Silent()
    files = plan.checkpoint.files
    needed = [planned.needed_tensors for planned in plan.layers]
    if query_bias:
        biases = [planned.layer.query_bias for planned in plan.layers]
        needed = [(*own, *([bias.tensor] if bias else [])) for own, bias in zip(needed, biases, strict=True)]
    sizes = [sum(entry.nbytes for entry in entries) for entries in needed]
    progress.start(len(plan.layers), sum(sizes))
    reading = (LayerWeights.read(files, *of_layer) for of_layer in zip(plan.layers, needed, strict=True))
    with prefetch(reading) as layers:
        for weights, size in zip(layers, sizes, strict=True):
            yield weights
            progress.bytes_done(size)
            progress.layer_done()


def split(weights: LayerWeights, pool: Workers) -> tuple[LayerWeights, ...]:
    """Split the weights into work items for the pool: one per key head, or the whole layer for a GPU."""
    parts = weights.planned.by_key_head() if pool.splits else (weights.planned,)
    return tuple(replace(weights, planned=part) for part in parts)


@contextmanager
def tensor_named(weights: LayerWeights) -> Iterator[None]:
    """Turn a NonFiniteWeightError into a CheckpointError that names the tensor."""
    try:
        yield
    except NonFiniteWeightError as error:
        raise non_finite_weights(weights.planned.layer, error) from None


def _heads_of(
    plan: SteerPlan, weights: LayerWeights, device: torch.device, rotations: dict[int, dict[str, Tensor]]
) -> tuple[HeadSpectrum, ...]:
    suppression, planned = plan.options.suppression, weights.planned
    turned = rotations[planned.layer.index]
    stored = weights.product(device)
    at_zero = whole = weights.with_input_gain(stored)
    at_offsets = {
        part: weights.with_input_gain(weights.product(device, rotation.mT)) for part, rotation in turned.items()
    }
    if plan.options.protect:
        with tensor_named(weights):
            at_zero = without_sink(weights, whole, plan).product
            at_offsets = {part: without_sink(weights, turn, plan).product for part, turn in at_offsets.items()}
    product = at_offsets.get("all", at_zero)
    with tensor_named(weights):
        found = spectra(product, suppression)
    columns = {
        "rank": found.ranks,
        "k": found.counts,
        "energy_top_k": top_energy(found.values, found.counts),
        "effective_rank": effective_rank(found.values),
        "symmetric_share": symmetric_share(product, suppression),
        "gap_at_k": gap(found.values, found.counts, found.ranks),
        "unrealized_share": found.unrealized_share,
        "leak": found.leak,
        "bias_share": _bias_share(weights, stored),
    }
    without = [None] * len(planned.heads)
    lists: dict[str, list[Any]] = {
        name: without if column is None else numbers(column) for name, column in columns.items()
    }
    kept = _kept(suppression, at_zero, at_offsets)
    values = found.values.tolist()
    return tuple(
        HeadSpectrum(
            head=head,
            key_head=head // planned.layer.group_size,
            singular_values=tuple(values[place]),
            kept=kept[place],
            **{name: column[place] for name, column in lists.items()},
        )
        for place, head in enumerate(planned.heads)
    )


def numbers(values: Tensor) -> list[Any]:
    """Return a tensor of one number per head as a list, None for NaN."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values.tolist()]


def _bias_share(weights: LayerWeights, product: QKProduct) -> Tensor | None:
    seen_by_keys, key_bias = weights.query_constant_seen_by_keys(), weights.key_bias()
    if seen_by_keys is None and key_bias is None:
        return None
    return bias_share(product, seen_by_keys, key_bias)


def _kept(
    suppression: Suppression, at_zero: QKProduct, at_offsets: dict[str, QKProduct]
) -> list[dict[str, KeptShare] | None]:
    if not at_offsets:
        return [None] * at_zero.heads
    before = dominant_subspaces(at_zero, suppression)
    after = {part: dominant_subspaces(product, suppression) for part, product in at_offsets.items()}
    return [
        {
            part: KeptShare(
                kept_share(before.query_side[head], spans.query_side[head]),
                kept_share(before.key_side[head], spans.key_side[head]),
            )
            for part, spans in after.items()
        }
        for head in range(at_zero.heads)
    ]


def _rotations(plan: SteerPlan, layer: AttentionLayer, offset: Offset) -> dict[str, Tensor]:
    """Return `R_n` for the whole offset ("all") and, for multimodal positions, for each part of it alone."""
    if offset == NO_OFFSET:
        return {}
    positions = rotary_positions(plan.checkpoint, plan.stack.decoder, layer)
    if positions is None:
        return {"all": torch.eye(layer.head_size, dtype=torch.float64)}
    if not positions.axes and len(set(offset)) > 1:
        raise UsageError("the model's positions have one part, not three", where="offset", remedy="give one number")
    rotations = {"all": positions.rotation(offset)}
    temporal, height, width = offset
    alone: dict[str, Offset] = dict(zip(AXES, ((temporal, 0, 0), (0, height, 0), (0, 0, width)), strict=True))
    moving = {axis: part for axis, part in alone.items() if part != NO_OFFSET} if positions.axes else {}
    if len(moving) > 1:
        rotations |= {axis: positions.rotation(part) for axis, part in moving.items()}
    return rotations


def near_equal_warning(near_equal: int, heads: int) -> str:
    """Return the warning about heads whose cut falls between nearly equal singular values."""
    return (
        f"in {near_equal} of {heads} heads the singular values on both sides of the cut differ by less than "
        f"{NEAR_EQUAL - 1:.0%}: which modes count as dominant is arbitrary there"
    )


def _warnings(plan: SteerPlan, layers: tuple[LayerSpectra, ...], offset: Offset) -> Iterator[str]:
    """Yield warnings about numbers that could mislead a reader."""
    if plan.stack.understood_as:
        yield plan.stack.understood_as
    if plan.options.protect:
        yield (
            f"the spectra are those of queries orthogonal to the {counted(plan.options.protect, 'direction')} that "
            "find the first token, as --protect asks"
        )
    if plan.options.product == "folded":
        yield "the spectra are those of products with the gain of the norm before them, as --product folded asks"
    heads = [head for layer in layers for head in layer.heads]
    near_equal = sum(head.gap_at_k is not None and head.gap_at_k < NEAR_EQUAL for head in heads)
    if near_equal:
        yield near_equal_warning(near_equal, len(heads))
    empty = sum(head.rank == 0 for head in heads)
    if empty:
        yield f"the query-key product of {empty} of {len(heads)} heads is zero"
    normed = [planned.layer.index for planned in plan.layers if planned.layer.query_norm or planned.layer.key_norm]
    if normed:
        yield (
            f"queries and keys of layers {describe(normed)} are normalised token by token: the gains are in the "
            "product, the normalisers are not, so only the shape of a spectrum counts there, not the size of σ"
        )
    shares = [head.bias_share for head in heads if head.bias_share is not None]
    if shares and max(shares) >= NOTABLE_BIAS:
        parts = "biases and shifts of norms" if normed else "biases"
        yield (
            f"{parts} of queries and keys contribute {median(shares):.0%} of a logit's variance in the median head, "
            f"and up to {max(shares):.0%} (inputs of unit variance): the product does not show that part"
        )
    partial = [planned.layer for planned in plan.layers if planned.layer.rope.is_partial]
    if partial:
        yield (
            f"layers {describe([layer.index for layer in partial])} rotate only some of each head's dimensions: "
            "the rest of the product is the same at every offset"
        )
    unrotated = [planned.layer.index for planned in plan.layers if planned.layer.rope is Rotation.NONE]
    if unrotated and offset != NO_OFFSET:
        yield f"layers {describe(unrotated)} have no rotary positions: an offset changes nothing there"
