"""Edit a loaded model in memory: the same stream that a checkpoint is written from, and the base back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qkedit.errors import CheckpointError, UnsupportedForm
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.edited_weights import TORCH_DTYPES, edited_weights, sha256
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.plan import SteerPlan


@contextmanager
def edited(model: Any, plan: SteerPlan) -> Iterator[tuple[EditRecord, ...]]:
    """Put the edited query weights into `model`; at the end the weights that were there stand again, to the bit.

    The edited weights are rounded as they are stored, so that the model is the one that `steer` would write.

    Args:
        model: loaded from the checkpoint of the plan, in its stored dtype or a wider one.
        plan: what to edit.

    Raises:
        CheckpointError: the model does not hold the weights of the plan's checkpoint.
        UnsupportedForm: the model has no parameter of the name that the checkpoint gives a tensor.
    """
    before: list[tuple[Tensor, Tensor]] = []
    records = []
    try:
        with torch.no_grad():
            device = choose_device(plan.options.device)
            for name, weights, record in edited_weights(stored_layers(plan), plan, device):
                parameter = parameter_of(model, name, record.layer).data
                _check_is_base(parameter, record)
                before.append((parameter, parameter.clone()))
                parameter.copy_(weights)
                records.append(record)
        yield tuple(records)
    finally:
        for parameter, weights in before:
            parameter.copy_(weights)


def parameter_of(model: Any, name: str, layer: int) -> nn.Parameter:
    """Return the parameter of a decoder layer that a checkpoint stores under `name`.

    Libraries rename what stands before the layers when they load a checkpoint; the name within a layer stays.

    Raises:
        UnsupportedForm: there is none.
    """
    layers = getattr(model.get_decoder(), "layers", ())
    parameters = layers[layer].named_parameters() if layer < len(layers) else ()
    for place, parameter in parameters:
        if name.endswith(f".{place}"):
            return parameter
    raise UnsupportedForm(
        "the loaded model has no parameter of this name",
        where=f"{type(model).__name__}, layer {layer}, {name}",
        remedy="write the edited checkpoint with `qkedit steer` and load that",
    )


def _check_is_base(parameter: Tensor, record: EditRecord) -> None:
    """Refuse weights that, rounded to the dtype of storage, are not the stored ones: renamed, rearranged, edited."""
    stored = parameter.to("cpu", TORCH_DTYPES[record.tensor.dtype]).contiguous()
    if sha256(stored) != record.sha256_before:
        raise CheckpointError(
            "the weights in memory are not the stored ones",
            where=record.tensor.name,
            remedy="load the model in its stored dtype or in float32, and edit it once at a time",
        )
