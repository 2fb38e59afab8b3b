"""Edit a loaded model in memory, and take the edit back: the same stream that a checkpoint is written from.

with qkedit.edit(model, layers="10-20", k=4) as edit:
    model.generate(**inputs)
    with edit.disabled():
        model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.checkpoint.query_modules import parameter_place
from qkedit.errors import CheckpointError, UnsupportedForm
from qkedit.renamed import renamed_argument
from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.selection import Selection, selection_text
from qkedit.spectral.options import Channel, Control, Suppression
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.layer_weights import TORCH_DTYPES, sha256
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.options import ComputeDtype, SteerOptions
from qkedit.steering.plan import SteerPlan, make_plan


@dataclass(frozen=True)
class _Replaced:
    """One parameter, and its weights without the edit and with it."""

    parameter: Tensor
    before: Tensor
    after: Tensor


class ModelEdit:
    """An edit of a loaded model that can be switched off and on; a context manager that takes it back at its end.

    Attributes:
        records: what happened to each edited tensor, head by head.
    """

    def __init__(self, replaced: Sequence[_Replaced], records: Sequence[EditRecord]) -> None:
        self._replaced = tuple(replaced)
        self.records = tuple(records)
        self._enabled = True

    def __enter__(self) -> Self:
        """Return self; the edit is in place."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the weights that were there, to the bit."""
        self.disable()

    @property
    def enabled(self) -> bool:
        """Whether the edited weights are in the model."""
        return self._enabled

    def enable(self) -> None:
        """Put the edited weights into the model."""
        for replaced in self._replaced:
            replaced.parameter.copy_(replaced.after)
        self._enabled = True

    def disable(self) -> None:
        """Put the weights into the model that were there before the edit, to the bit."""
        for replaced in self._replaced:
            replaced.parameter.copy_(replaced.before)
        self._enabled = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the block without the edit; afterwards the edit is as it was."""
        was_enabled = self._enabled
        self.disable()
        try:
            yield
        finally:
            if was_enabled:
                self.enable()


@renamed_argument("residual", "retain")
def edit(
    model: Any,
    *,
    layers: Selection = "mid",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    retain: float = 0.0,
    channel: Channel = "full",
    control: Control = "none",
    seed: int = 0,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    allow_text_only: bool = False,
    architectures: Directories | None = None,
) -> ModelEdit:
    """Suppress the dominant query-key modes of a loaded model, in memory; the options are those of `qkedit.steer`.

    The weights are edited in the dtype they have in memory. A model that was loaded in its stored dtype is then the
    one that `steer` would write; one that was widened is rounded nowhere.

    Args:
        model: a model of transformers, such as `AutoModelForImageTextToText.from_pretrained` returns.
        layers, heads: which heads of which layers; as for `steer`, and so is all that follows.
        k, energy, retain, channel, control, seed: what to suppress in them.
        device, compute_dtype: where and in what precision to calculate.
        allow_text_only: edit a model without vision too.
        architectures: directories of records that are known besides qkedit's own (docs/adding-a-model.md).

    Returns:
        The edit, in place: use it in a `with` statement, or call `disable()` to take it back.

    Raises:
        QkeditError: the model's query-key product cannot be edited, or a selection does not fit it; it is unchanged.
    """
    suppression = Suppression(k, energy, retain, channel, control, seed)
    options = SteerOptions(
        selection_text(layers), selection_text(heads, "heads"), suppression, compute_dtype, device, allow_text_only
    )
    with using_architectures(architectures):
        plan = make_plan(checkpoint_of(model), options)
    parameters = dict(model.named_parameters())
    return _replace(
        (parameters[edited.name].data, edited.tensor, edited.record)
        for edited in edited_weights(stored_layers(plan), plan, choose_device(device))
    )


def edit_as_stored(model: Any, plan: SteerPlan) -> ModelEdit:
    """Edit a loaded model by a plan of the checkpoint it was loaded from.

    The edited weights are rounded as they are stored, so that the model is the one that `steer` would write.

    Args:
        model: loaded from the checkpoint of the plan, in its stored dtype or a wider one.
        plan: what to edit.

    Raises:
        CheckpointError: the model does not hold the weights of the plan's checkpoint.
        UnsupportedForm: the model has no parameter of the name that the checkpoint gives a tensor.
    """
    edits = edited_weights(stored_layers(plan), plan, choose_device(plan.options.device))
    return _replace(_checked(model, edits))


def _checked(model: Any, edits: EditedTensors) -> Iterator[tuple[Tensor, Tensor, EditRecord]]:
    for edited in edits:
        parameter = parameter_of(model, edited.name, edited.record.layer).data
        _check_is_base(parameter, edited.record)
        yield parameter, edited.tensor, edited.record


@torch.no_grad()
def _replace(edits: Iterable[tuple[Tensor, Tensor, EditRecord]]) -> ModelEdit:
    """Replace parameters by edited weights; what fails on the way leaves the model as it was."""
    replaced: list[_Replaced] = []
    records = []
    try:
        for parameter, weights, record in edits:
            before = parameter.clone()
            replaced.append(_Replaced(parameter, before, weights))
            parameter.copy_(weights)
            records.append(record)
    except BaseException:
        ModelEdit(replaced, records).disable()
        raise
    return ModelEdit(replaced, records)


def parameter_of(model: Any, name: str, layer: int) -> nn.Parameter:
    """Return the parameter of a decoder layer that a checkpoint stores under `name`.

    Raises:
        UnsupportedForm: there is none.
    """
    place = parameter_place(model, layer, name)
    if place is None:
        raise UnsupportedForm(
            "the loaded model has no parameter of this name",
            where=f"{type(model).__name__}, layer {layer}, {name}",
            remedy="write the edited checkpoint with `qkedit steer` and load that",
        )
    return place[1]


def _check_is_base(parameter: Tensor, record: EditRecord) -> None:
    """Refuse weights that, rounded to the dtype of storage, are not the stored ones: renamed, rearranged, edited."""
    stored = parameter.to("cpu", TORCH_DTYPES[record.tensor.dtype]).contiguous()
    if sha256(stored) != record.sha256_before:
        raise CheckpointError(
            "the weights in memory are not the stored ones",
            where=record.tensor.name,
            remedy="load the model in its stored dtype or in float32, and edit it once at a time",
        )
