"""Edit a loaded model in memory, reversibly, by the same engine that writes checkpoints.

with qkedit.edit(model, layers="10-20", k=4) as edit:  # or qkedit.edit(model, "./delta")
    model.generate(**inputs)
    with edit.disabled():
        model.generate(**inputs)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.manifest_file import TensorEdit
from qkedit.checkpoint.query_modules import parameter_place
from qkedit.errors import CheckpointError, UnsupportedForm, UsageError
from qkedit.plugins.core.modules import model_in
from qkedit.renamed import renamed_argument
from qkedit.runtime.copying_heads import copying_heads
from qkedit.runtime.edited_parameters import Change, EditedParameter
from qkedit.runtime.loaded_files import checkpoint_of
from qkedit.runtime.sink import sink_of
from qkedit.selection import Selection
from qkedit.spectral.changes.combination import combined
from qkedit.spectral.sink import NONE
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_tensor import EditedTensors
from qkedit.steering.engine.edited_weights import edited_weights
from qkedit.steering.engine.layer_weights import TORCH_DTYPES, sha256
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.plan import SteerPlan, make_plan
from qkedit.steering.sources.edit_source import EditSource, open_edits
from qkedit.steering.sources.fitting import refuse_misfits
from qkedit.steering.steer_options import ComputeDtype, Product, Role, SteerOptions, edit_options

Edits = str | Path | Sequence[str | Path]
"""Directories of existing edits."""

_Changes = Iterator[tuple[EditedParameter, Change, EditRecord]]


class ModelEdit:
    """An edit of a loaded model that can be switched off and on; as a context manager it is undone at the end.

    Several edits of one model may be switched in any order: the weights depend only on which of them are enabled, and
    are bit-identical to the original ones when none is.

    Attributes:
        records: the edit of each tensor, head by head.
    """

    def __init__(self, changes: Sequence[tuple[EditedParameter, Change]], records: Sequence[EditRecord]) -> None:
        self._changes = tuple(changes)
        self.records = tuple(records)
        self._enabled = True

    def __enter__(self) -> Self:
        """Return self; the edit is already active."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the original weights, bit for bit."""
        self.disable()

    @property
    def enabled(self) -> bool:
        """True if the edit is active."""
        return self._enabled

    @property
    def is_undone(self) -> bool:
        """True if the edited tensors hold their original weights, bit for bit; they are compared."""
        return all(parameter.is_original for parameter, _ in self._changes)

    def enable(self) -> None:
        """Apply the edit to the model."""
        self._switch(enabled=True)

    def disable(self) -> None:
        """Remove the edit from the model; without other edits the original weights are restored bit for bit."""
        self._switch(enabled=False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the block without the edit; afterwards the edit is as before."""
        was_enabled = self._enabled
        self.disable()
        try:
            yield
        finally:
            self._switch(enabled=was_enabled)

    def _switch(self, *, enabled: bool) -> None:
        for parameter, change in self._changes:
            parameter.set(change, enabled=enabled)
        self._enabled = enabled


@renamed_argument("residual", "retain")
def edit(
    model: Any,
    edits: Edits | None = None,
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
    protect: str = NONE,
    spare: Role = "none",
    product: Product = "raw",
    architectures: Directories | None = None,
) -> ModelEdit:
    """Suppress the dominant query-key modes of a loaded model in memory, or apply existing edits to it.

    Without `edits`, the options are those of `qkedit.steer`, and the weights are edited in the dtype they have in
    memory: a model loaded in its stored dtype becomes the one that `steer` would write, and a widened one is not
    rounded.

    Args:
        model: what `qkedit.load` returns, or a model of transformers, such as that in it.
        edits: instead of all other options, one or several outputs of qkedit (a delta, an adapter, a full directory),
            combined as by `qkedit.apply` and rounded to the storage dtype.
        layers, heads: the layers and heads to edit, as for `steer`; so are the following options.
        k, energy, retain, channel, control, seed: what to suppress in them.
        device, compute_dtype: the device and precision of the computation.
        allow_text_only: whether to edit a model without vision too.
        protect: `sink` or `sink:4` leaves alone as many query directions that find the attention sink; the model is
            run on one token to find them.
        spare: `induction` leaves alone the heads that copy; the model is run on random tokens to find them.
        product: `raw`, or `folded` with the gain of the norm before the projections.
        architectures: directories of records in addition to qkedit's own (docs/adding-a-model.md).

    Returns:
        The active edit, for use in a `with` statement; `disable()` removes it.

    Raises:
        QkeditError: the model's query-key product cannot be edited, a selection does not fit it, or it is not the base
            of the edits. The model is unchanged.
    """
    model = model_in(model)
    suppression = Suppression(k, energy, retain, channel, control, seed)
    options = edit_options(layers, heads, suppression, device, compute_dtype, allow_text_only, protect, spare, product)
    if edits is not None:
        if options != SteerOptions(device=device):
            raise UsageError("existing edits do not accept options", where="edits", remedy="give one or the other")
        with using_architectures(architectures):
            return _made(_from_sources(model, open_edits([edits] if isinstance(edits, str | Path) else edits)))
    with using_architectures(architectures):
        plan = with_run(make_plan(checkpoint_of(model), options), model)
    return _made(_as_loaded(model, edited_weights(stored_layers(plan), plan, choose_device(device))))


def edit_as_stored(model: Any, plan: SteerPlan) -> ModelEdit:
    """Edit a loaded model by a plan for the checkpoint it was loaded from.

    The edited weights are rounded to the storage dtype, so the model becomes the one that `steer` would write.

    Args:
        model: the model, loaded from the plan's checkpoint in its stored dtype or a wider one.
        plan: the plan of the edit.

    Raises:
        CheckpointError: the model does not hold the weights of the plan's checkpoint.
        UnsupportedForm: the model does not have a parameter for a tensor of the checkpoint.
    """
    plan = with_run(plan, model)
    return _made(_on_base(model, edited_weights(stored_layers(plan), plan, choose_device(plan.options.device))))


def with_run(plan: SteerPlan, model: Any) -> SteerPlan:
    """Return the plan with what a run of the loaded model shows, as far as its options ask for it.

    Raises:
        UsageError: all planned heads are to be spared.
        UnsupportedForm: the model does not show it.
    """
    if plan.options.spare != "none" and plan.spared is None:
        plan = plan.sparing(copying_heads(model))
    if plan.options.protect and plan.sink is None:
        plan = replace(plan, sink=sink_of(model))
    return plan


def with_run_of(plan: SteerPlan, model: str, revision: str | None = None) -> SteerPlan:
    """Return the plan with what a run of a model shows, loaded by its name on the CPU, if the options ask for it.

    Raises:
        QkeditError: the model cannot be loaded; or for the reasons of `with_run`.
    """
    if not plan.needs_run:
        return plan
    from qkedit.runtime.generation import load

    return with_run(plan, load(model, revision=revision).model)


def _as_loaded(model: Any, edits: EditedTensors) -> _Changes:
    """Yield the changes by edits of the loaded model, on top of its other edits."""
    parameters = dict(model.named_parameters())
    for edited in edits:
        parameter = EditedParameter.of(parameters[edited.name])
        yield parameter, Change(parameter.current, edited.tensor), edited.record


def _on_base(model: Any, edits: EditedTensors) -> _Changes:
    """Yield the changes by edits of a checkpoint to the model that was loaded from it."""
    for edited in edits:
        parameter = _base_parameter(model, edited.record)
        yield parameter, Change(parameter.original, edited.tensor), edited.record


def _from_sources(model: Any, sources: Sequence[EditSource]) -> _Changes:
    """Yield the changes by existing edits, one per tensor."""
    by_name = _layers_by_stored_name(model, [tensor for source in sources for tensor in source.manifest.tensors])
    for source in sources:
        refuse_misfits(source.manifest, by_name, type(model).__name__)
    known = [(source, tensor) for source in sources for tensor in source.manifest.tensors]
    for name in dict.fromkeys(tensor.name for _, tensor in known):
        touching = [(source, tensor) for source, tensor in known if tensor.name == name]
        records = [_record(tensor) for _, tensor in touching]
        *_, parameter = (_base_parameter(model, record) for record in records)
        before = parameter.original.to("cpu", TORCH_DTYPES[records[0].tensor.dtype]).contiguous()
        after = combined(before, [source.edited(tensor, before, by_name[name].query) for source, tensor in touching])
        heads = tuple(head for record in records for head in record.heads)
        yield parameter, Change(parameter.original, after), replace(records[0], heads=heads)


def _layers_by_stored_name(model: Any, tensors: Sequence[TensorEdit]) -> dict[str, AttentionLayer]:
    """Return the layers whose queries are in the parameters that manifests name, by the names that these use.

    Raises:
        UnsupportedForm: the model has no such parameter.
    """
    parameters = dict(model.named_parameters())
    stack = attention_stack(checkpoint_of(model), allow_text_only=True)
    layers = {id(parameters[layer.query.tensor.name]): layer for layer in stack.layers}
    meant = {tensor.name: id(parameter_of(model, tensor.name, tensor.layer)) for tensor in tensors}
    return {name: layers[parameter] for name, parameter in meant.items() if parameter in layers}


def _record(tensor: TensorEdit) -> EditRecord:
    """Return the manifest's record of a tensor, without its place on disk."""
    entry = TensorEntry(tensor.name, tensor.shard, tensor.dtype, tensor.shape, 0, 0)
    return EditRecord(tensor.layer, tensor.form, tensor.norm, entry, tensor.sha256_before, tensor.heads)


def _made(changes: _Changes) -> ModelEdit:
    """Apply the changes one by one; on a failure the model is restored."""
    made: list[tuple[EditedParameter, Change]] = []
    records = []
    try:
        for parameter, change, record in changes:
            made.append((parameter, change))
            parameter.add(change)
            records.append(record)
    except BaseException:
        for parameter, change in made:
            parameter.forget(change)
        raise
    return ModelEdit(made, records)


def parameter_of(model: Any, name: str, layer: int) -> nn.Parameter:
    """Return the parameter of a decoder layer that a checkpoint stores under `name`.

    Raises:
        UnsupportedForm: there is no such parameter.
    """
    place = parameter_place(model, layer, name)
    if place is None:
        raise UnsupportedForm(
            "the loaded model has no parameter of this name",
            where=f"{type(model).__name__}, layer {layer}, {name}",
            remedy="write the edited checkpoint with `qkedit steer` and load that",
        )
    return place[1]


def _base_parameter(model: Any, record: EditRecord) -> EditedParameter:
    """Return the parameter for an edit of a checkpoint, disregarding its other edits.

    Raises:
        CheckpointError: the parameter's weights, rounded to the storage dtype, are not the stored ones.
        UnsupportedForm: there is no such parameter.
    """
    parameter = EditedParameter.of(parameter_of(model, record.tensor.name, record.layer))
    stored = parameter.original.to("cpu", TORCH_DTYPES[record.tensor.dtype]).contiguous()
    if sha256(stored) != record.sha256_before:
        raise CheckpointError(
            "the weights in memory are not the stored ones",
            where=record.tensor.name,
            remedy="load the model that the edit was made from, in its stored dtype or in float32",
        )
    return parameter
