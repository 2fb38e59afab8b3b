"""Prepare the settings of a sweep for a model: its layers, and the identity of its results."""

from __future__ import annotations

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.evaluation.statistics.guard import Guard
from qkedit.laboratory.eval_set import SceneRange, make_eval_set
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.worker import ModelSpec
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of
from qkedit.selection import describe, select_layers
from qkedit.spectral.suppression import Channel, Control
from qkedit.steering.plan import make_plan
from qkedit.steering.steer_options import Product, Role


def prepare(
    model_spec: ModelSpec,
    *,
    layers: tuple[str, ...],
    ks: tuple[int, ...],
    channels: tuple[Channel, ...],
    retains: tuple[float, ...],
    control: Control,
    seeds: int,
    objective: str,
    guards: tuple[Guard, ...],
    scenes: SceneRange,
    protect: int = 0,
    spare: Role = "none",
    product: Product = "raw",
) -> SweepSettings:
    """Return the settings of a sweep of `model_spec`; alternatives for the same layers are merged.

    Raises:
        UsageError: the model does not have the layers, or options contradict each other.
        CheckpointError: the model cannot be read.
    """
    checkpoint = open_checkpoint(resolve(model_spec.model, model_spec.revision))
    stack = attention_stack(checkpoint)
    available = sorted(layer.index for layer in stack.layers)
    chosen = dict.fromkeys(describe(select_layers(text, stack.layer_count, available)) for text in layers)
    settings = SweepSettings(
        model=model_spec.model,
        weights=fingerprint(directory_of(model_spec.model, model_spec.revision))["weights_sha256"],
        dtype=model_spec.dtype,
        device=model_spec.device.partition(":")[0],
        layers=tuple(chosen),
        ks=ks,
        channels=channels,
        retains=retains,
        control=control,
        seeds=seeds,
        objective=objective,
        guards=guards,
        scenes=scenes,
        eval_set=make_eval_set(scenes).digest(),
        protect=protect,
        spare=spare,
        product=product,
    )
    for cell in settings.cells():
        for arm in cell.controls(control, 1):
            if arm.steer is not None:
                make_plan(checkpoint, arm.steer)  # before any run, refuse an edit that no control can match
    return settings
