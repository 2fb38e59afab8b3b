"""Compare two models or two edits of one base: per tensor, and per head of the query-key products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import QkeditError
from qkedit.steering.base import Base
from qkedit.steering.diff import TensorDifference, differing_tensors, tensor_difference
from qkedit.steering.differences.sides import Side, is_edit, open_sides, refuse_other_shape, same_shape
from qkedit.steering.plan import PlannedLayer

if TYPE_CHECKING:
    from torch import Tensor

    from qkedit.steering.differences.heads import LayerDifference


@dataclass(frozen=True)
class ModelDifference(Sequence[TensorDifference]):
    """The differences of two models or edits; as a sequence, the differing tensors.

    Attributes:
        first: A, as the user named it.
        second: B.
        base: the reference of both; None if A is the reference.
        compared: the number of compared tensors.
        tensors: the tensors that differ, by name.
        layers: the layers whose query-key products differ, by index.
        not_per_head: the reason for the lack of figures per head; None if there are figures.
    """

    first: str
    second: str
    base: str | None
    compared: int
    tensors: tuple[TensorDifference, ...]
    layers: tuple[LayerDifference, ...]
    not_per_head: str | None = None

    @overload
    def __getitem__(self, place: int) -> TensorDifference: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[TensorDifference]: ...

    def __getitem__(self, place: int | slice) -> TensorDifference | Sequence[TensorDifference]:
        """Return one of the tensors that differ, or a slice of them."""
        return self.tensors[place]

    def __len__(self) -> int:
        """Return the number of tensors that differ."""
        return len(self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return {
            "a": self.first,
            "b": self.second,
            "base": self.base,
            "compared": self.compared,
            "differences": [asdict(tensor) for tensor in self.tensors],
            "layers": [asdict(layer) for layer in self.layers],
            "not_per_head": self.not_per_head,
        }


def difference_between(
    first: str,
    second: str,
    *,
    base: str | None = None,
    revision: str | None = None,
    on_bytes: Callable[[int], None] = lambda length: None,
) -> ModelDifference:
    """Compare two checkpoints, two edits of one base, or one with the other.

    For edits (deltas and adapters), only the tensors of the query-key products are compared, since an edit changes
    nothing else.

    Args:
        first: A: a directory that qkedit wrote in any layout, another checkpoint, a hub id, an alias or `demo`.
        second: B, likewise.
        base: the model that A and B were made from. By default, the base of an edit is the other side if that one is
            not edited, else the recorded base. Two checkpoints have no base by default, and A is the reference.
        revision: the branch, tag or commit of a base on the hub.
        on_bytes: called with the number of bytes read.

    Raises:
        UsageError: the base of an edit is not known.
        CheckpointError: a side is not sound, or the base is not the one that an edit was made from.
        UnsupportedForm: the base of an edit has no query-key product.
    """
    if is_edit(first) or is_edit(second):
        one, other, reference = open_sides(first, second, base, revision)
        found = list(_layers_of_edits(one, other, reference))
        return ModelDifference(
            first,
            second,
            reference.name,
            compared=sum(len(PlannedLayer(layer, ()).needed_tensors) for layer in one.layers.values()),
            tensors=tuple(sorted((tensor for _, tensors in found for tensor in tensors), key=lambda one: one.name)),
            layers=tuple(layer for layer, _ in found),
        )
    checkpoints = open_checkpoint(resolve(first, None)), open_checkpoint(resolve(second, None))
    tensors, compared = differing_tensors(*checkpoints, on_bytes)
    reference_of = Base(base, revision).open() if base is not None else None
    layers, reason = _layers_of_checkpoints(first, second, checkpoints, reference_of, {one.name for one in tensors})
    named = None if reference_of is None else reference_of.files.name
    return ModelDifference(first, second, named, compared, tuple(tensors), layers, reason)


def _layers_of_checkpoints(
    first: str, second: str, checkpoints: tuple[Checkpoint, Checkpoint], base: Checkpoint | None, differing: set[str]
) -> tuple[tuple[LayerDifference, ...], str | None]:
    """Return the layers whose products differ, or the reason why products cannot be compared."""
    try:
        one, other = (Side(name, checkpoint) for name, checkpoint in zip((first, second), checkpoints, strict=True))
    except QkeditError as error:
        return (), str(error)
    reference = None if base is None else Side(base.files.name, base)
    layers = []
    for index in sorted(one.layers.keys() & other.layers.keys()):
        planned = [PlannedLayer(side.layers[index], ()) for side in (one, other)]
        if differing.isdisjoint(entry.name for plan in planned for entry in plan.needed_tensors):
            continue
        if not same_shape(*(plan.layer for plan in planned)):
            return (), f"layer {index} has another shape in the two models."
        if reference is not None:
            refuse_other_shape(reference, one, index)
        compared = _compared_layer(index, one, other, reference)
        if compared.heads:
            layers.append(compared)
    return tuple(layers), None


def _layers_of_edits(
    one: Side, other: Side, reference: Side
) -> Iterator[tuple[LayerDifference, list[TensorDifference]]]:
    """Yield each layer that differs, with its tensors that differ."""
    for index in sorted(reference.layers):
        for side in (one, other):
            if side.checkpoint is not reference.checkpoint:
                refuse_other_shape(side, reference, index)
        if all(side.checkpoint is reference.checkpoint and not side.changes(index) for side in (one, other)):
            continue
        ours, theirs = one.tensors(index), other.tensors(index)
        tensors = [*_differing(ours, theirs)]
        if tensors:
            yield _compared_layer(index, one, other, reference, ours, theirs), tensors


def _differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[TensorDifference]:
    from qkedit.spectral.changes.combination import differs
    from qkedit.steering.engine.layer_weights import stored_bytes

    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None:
            yield TensorDifference(name, "only in B" if a is None else "only in A")
        elif (a.dtype, a.shape) != (b.dtype, b.shape):
            yield TensorDifference(name, "dtype or shape")
        elif bool(differs(a, b).any()):
            yield tensor_difference(name, [(stored_bytes(a), stored_bytes(b))], a.dtype)


def _compared_layer(
    index: int,
    one: Side,
    other: Side,
    reference: Side | None,
    ours: Mapping[str, Tensor] | None = None,
    theirs: Mapping[str, Tensor] | None = None,
) -> LayerDifference:
    from qkedit.steering.differences.heads import compared_layer

    return compared_layer(
        (one.layers[index], ours or one.tensors(index)),
        (other.layers[index], theirs or other.tensors(index)),
        None if reference is None else (reference.layers[index], reference.tensors(index)),
    )
