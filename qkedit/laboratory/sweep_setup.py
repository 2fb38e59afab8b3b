"""From what was asked for to the settings of a sweep: layers as the model has them, and what its results belong to."""

from __future__ import annotations

import hashlib

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.layers import attention_stack
from qkedit.checkpoint.resolve import resolve
from qkedit.laboratory.bench import Subject
from qkedit.laboratory.exam import ExamRange, make_exam
from qkedit.laboratory.sweep_grid import Guard, SweepSettings
from qkedit.spectral.options import Channel, Control
from qkedit.steering.selection import describe, select_layers
from qkedit.steering.stream import read_tensor, stored_bytes


def prepare(
    subject: Subject,
    *,
    layers: tuple[str, ...],
    ks: tuple[int, ...],
    channels: tuple[Channel, ...],
    residuals: tuple[float, ...],
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
    return SweepSettings(
        model=subject.model,
        weights=weights_digest(checkpoint),
        dtype=subject.dtype,
        device=subject.device.partition(":")[0],
        layers=tuple(chosen),
        ks=ks,
        channels=channels,
        residuals=residuals,
        control=control,
        seeds=seeds,
        objective=objective,
        guards=guards,
        scenes=scenes,
        exam=make_exam(scenes).digest(),
    )


def weights_digest(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 of the model's query and key weights: another training has another one."""
    digest = hashlib.sha256()
    for layer in attention_stack(checkpoint).layers:
        for entry in {rows.tensor.name: rows.tensor for rows in (layer.query, layer.key)}.values():
            digest.update(stored_bytes(read_tensor(checkpoint.files, entry)))
    return digest.hexdigest()
