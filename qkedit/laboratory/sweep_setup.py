"""From what was asked for to the settings of a sweep: layers as the model has them, and what its results belong to."""

from __future__ import annotations

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.laboratory.eval_set import ExamRange, make_exam
from qkedit.laboratory.sweep_grid import Guard, SweepSettings
from qkedit.laboratory.worker import Subject
from qkedit.runtime.fingerprint import fingerprint
from qkedit.runtime.generation import directory_of
from qkedit.selection import describe, select_layers
from qkedit.spectral.options import Channel, Control
from qkedit.steering.plan import make_plan


def prepare(
    subject: Subject,
    *,
    layers: tuple[str, ...],
    ks: tuple[int, ...],
    channels: tuple[Channel, ...],
    retains: tuple[float, ...],
    control: Control,
    seeds: int,
    objective: str,
    guards: tuple[Guard, ...],
    scenes: ExamRange,
) -> SweepSettings:
    """Return the settings of a sweep of `subject`; alternatives that mean the same layers become one.

    Raises:
        UsageError: the model has no such layers, or the request contradicts itself.
        CheckpointError: the model cannot be read.
    """
    checkpoint = open_checkpoint(resolve(subject.model, subject.revision))
    stack = attention_stack(checkpoint)
    available = sorted(layer.index for layer in stack.layers)
    chosen = dict.fromkeys(describe(select_layers(text, stack.layer_count, available)) for text in layers)
    settings = SweepSettings(
        model=subject.model,
        weights=fingerprint(directory_of(subject.model, subject.revision))["weights_sha256"],
        dtype=subject.dtype,
        device=subject.device.partition(":")[0],
        layers=tuple(chosen),
        ks=ks,
        channels=channels,
        retains=retains,
        control=control,
        seeds=seeds,
        objective=objective,
        guards=guards,
        scenes=scenes,
        exam=make_exam(scenes).digest(),
    )
    for cell in settings.cells():
        for arm in cell.controls(control, 1):
            if arm.steer is not None:
                make_plan(checkpoint, arm.steer)  # refuses an edit that no control can match, before any run
    return settings
