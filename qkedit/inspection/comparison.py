"""Compare two models of the same shape head by head: singular values, and the angles between dominant subspaces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.errors import UsageError
from qkedit.inspection.spectra import near_equal_warning, numbers, planned_weights, split, tensor_named
from qkedit.spectral.analysis import DominantSubspaces, dominant_subspaces, principal_angles, spectra
from qkedit.spectral.mode_selection import gap, top_energy
from qkedit.spectral.suppression import NEAR_EQUAL, Suppression
from qkedit.steering.base import chosen_base
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.layer_weights import LayerWeights
from qkedit.steering.engine.progress import Progress
from qkedit.steering.engine.workers import workers
from qkedit.steering.manifest import MANIFEST_FILE, read_manifest_of
from qkedit.steering.plan import SteerPlan


@dataclass(frozen=True)
class HeadComparison:
    """One head in both models.

    The principal angles between the spans of the dominant modes are in degrees, ascending: 0 means that both models
    have the direction, 90 that one of them lacks it. The query side compares left singular vectors, the key side right
    ones.
    """

    head: int
    key_head: int
    before: tuple[float, ...]  # σ, descending
    after: tuple[float, ...]
    energy_top_k_before: float
    energy_top_k_after: float
    gap_at_k_before: float | None  # σ_k / σ_{k+1}
    gap_at_k_after: float | None
    query_side_angles: tuple[float, ...]
    key_side_angles: tuple[float, ...]


@dataclass(frozen=True)
class LayerComparison:
    """The selected heads of one layer, in both models."""

    layer: int
    heads: tuple[HeadComparison, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models."""

    model: str
    other: str
    channel: str
    wanted: str  # what counts as dominant: "k 4" or "energy 0.9"
    layers: tuple[LayerComparison, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return warnings about angles that could mislead a reader."""
        heads = [head for layer in self.layers for head in layer.heads]
        gaps = [
            [ratio for ratio in (head.gap_at_k_before, head.gap_at_k_after) if ratio is not None] for head in heads
        ]
        near_equal = sum(min(found, default=NEAR_EQUAL) < NEAR_EQUAL for found in gaps)
        return (near_equal_warning(near_equal, len(heads)),) if near_equal else ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return asdict(self)


def compare_spectra(before: SteerPlan, after: SteerPlan, progress: Progress | None = None) -> Comparison:
    """Compare the planned heads of two models.

    Args:
        before: the plan of the base model.
        after: the plan of the edited model, or of any model of the same shape, made with the same options.
        progress: called with the progress of the run.

    Raises:
        UsageError: the models do not have the same layers and heads.
        CheckpointError: a weight holds NaN or infinity, or bytes cannot be read.
    """
    _check_same_shape(before, after)
    suppression = before.options.suppression
    return Comparison(
        before.checkpoint.files.name,
        after.checkpoint.files.name,
        suppression.channel,
        f"k {suppression.k}" if suppression.energy is None else f"energy {suppression.energy:g}",
        tuple(_compared_layers(before, after, progress)),
    )


def base_of(checkpoint: Checkpoint, base: str | None = None, revision: str | None = None) -> Checkpoint:
    """Open the model that a checkpoint was made from.

    Args:
        checkpoint: the edited model.
        base: the model that the user named; None for the base in the manifest, on the hub or the demo.
        revision: the revision of the base; None for the recorded one.

    Raises:
        UsageError: no base was named and there is no manifest, or the manifest names a local directory, which may be
            elsewhere on this machine.
        CheckpointError: the base or the manifest is broken, or the hub does not have the model.
    """
    manifest = read_manifest_of(checkpoint)
    found = chosen_base(manifest, base, revision)
    if found is not None:
        return found.open()
    if manifest is None:
        raise UsageError(
            f"there is no {MANIFEST_FILE} that names a base",
            where=checkpoint.files.name,
            remedy="name the model to compare with: --compare OTHER",
        )
    raise UsageError(
        f"the base {manifest.base.model!r} was a local directory",
        where=checkpoint.files.name,
        remedy="name it with --base DIRECTORY",
    )


def _check_same_shape(before: SteerPlan, after: SteerPlan) -> None:
    if [planned.layer.index for planned in before.layers] != [planned.layer.index for planned in after.layers]:
        raise UsageError(
            "the two models do not have the same layers",
            where="compare",
            remedy="choose layers that both have with --layers",
        )
    for ours, theirs in zip(before.layers, after.layers, strict=True):
        shapes = [(plan.heads, plan.key_heads, plan.layer.head_size, _width(plan.layer)) for plan in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"layer {ours.layer.index} does not have the same shape in both models",
                where="compare",
                remedy="compare models of the same shape",
            )


def _width(layer: AttentionLayer) -> int:
    return layer.query.tensor.shape[1]


def _compared_layers(before: SteerPlan, after: SteerPlan, progress: Progress | None) -> Iterator[LayerComparison]:
    device, suppression = choose_device(before.options.device), before.options.suppression
    with workers(device) as pool:
        for weights, others in zip(planned_weights(before, progress), planned_weights(after), strict=True):
            pairs = zip(split(weights, pool), split(others, pool), strict=True)
            parts = pool.map(lambda pair: _compared_heads(*pair, device, suppression), pairs)
            yield LayerComparison(weights.planned.layer.index, tuple(head for part in parts for head in part))


def _compared_heads(
    weights: LayerWeights, others: LayerWeights, device: torch.device, suppression: Suppression
) -> tuple[HeadComparison, ...]:
    ours, theirs = _side(weights, device, suppression), _side(others, device, suppression)
    return tuple(
        HeadComparison(
            head=head,
            key_head=head // weights.planned.layer.group_size,
            before=ours.values[place],
            after=theirs.values[place],
            energy_top_k_before=ours.energies[place],
            energy_top_k_after=theirs.energies[place],
            gap_at_k_before=ours.gaps[place],
            gap_at_k_after=theirs.gaps[place],
            query_side_angles=_degrees(ours.dominant.query_side[place], theirs.dominant.query_side[place]),
            key_side_angles=_degrees(ours.dominant.key_side[place], theirs.dominant.key_side[place]),
        )
        for place, head in enumerate(weights.planned.heads)
    )


@dataclass(frozen=True)
class _Side:
    values: list[tuple[float, ...]]
    energies: list[float]
    gaps: list[float | None]
    dominant: DominantSubspaces


def _side(weights: LayerWeights, device: torch.device, suppression: Suppression) -> _Side:
    with tensor_named(weights):
        product = weights.product(device)
        found = spectra(product, suppression)
        return _Side(
            [tuple(values) for values in found.values.tolist()],
            top_energy(found.values, found.counts).tolist(),
            numbers(gap(found.values, found.counts, found.ranks)),
            dominant_subspaces(product, suppression),
        )


def _degrees(first: Tensor, second: Tensor) -> tuple[float, ...]:
    return tuple(math.degrees(angle) for angle in principal_angles(first, second).tolist())
