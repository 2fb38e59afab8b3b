"""Find the numbers of modes of a sweep whose edits and random controls the model's dtype can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import CheckpointError, QkeditError
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.worker import ModelSpec
from qkedit.runtime.editing import edit_as_stored
from qkedit.runtime.generation import load
from qkedit.steering.plan import make_plan


def with_storable_ks(settings: SweepSettings, model_spec: ModelSpec) -> SweepSettings:
    """Return the settings without the numbers of modes of which some control is too small to be stored.

    A random mode may hold so little energy that the change of the weights is lost in 16-bit rounding. Such an edit is
    refused, and would end the sweep.

    Raises:
        QkeditError: no number of modes is left.
    """
    loaded = load(model_spec.model, revision=model_spec.revision, device=model_spec.device, dtype=model_spec.dtype)
    checkpoint = open_checkpoint(resolve(model_spec.model, model_spec.revision))
    refused: set[int] = set()
    for cell in settings.cells():
        if cell.k is None or cell.k in refused:
            continue
        for arm in (cell.arm(), *cell.controls(settings.control, settings.seeds)):
            assert arm.steer is not None
            try:
                with edit_as_stored(loaded.model, make_plan(checkpoint, arm.steer)):
                    pass
            except CheckpointError:
                refused.add(cell.k)
                break
    left = tuple(k for k in settings.ks if k not in refused)
    if not left:
        raise QkeditError(
            "no number of modes has controls that can be stored",
            where=settings.model,
            remedy="add larger numbers to KS",
        )
    return replace(settings, ks=left)


def left_out_sentence(asked: Sequence[int], left: Sequence[int]) -> str:
    """Return a sentence about the numbers of modes that were left out; empty if there are none."""
    missing = [str(k) for k in asked if k not in left]
    if not missing:
        return ""
    return (
        f" k {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} left out: some random modes hold so "
        "little energy that their change is lost in the rounding of the stored weights."
    )
