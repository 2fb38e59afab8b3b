"""Describe a plan of `steer` in a sentence, including default values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkedit.errors import counted
from qkedit.selection import describe

if TYPE_CHECKING:
    from qkedit.steering.plan import SteerPlan
    from qkedit.steering.steer_options import OutputOptions


_KINDS: dict[str, str] = {
    "full": "the full checkpoint",
    "delta": "a delta, the edited tensors alone,",
    "lora": "an adapter, the change alone as a LoRA,",
}


def plan_in_words(plan: SteerPlan, target: OutputOptions | None) -> str:
    """Return the plan in one sentence; `target` is None without --out."""
    wanted = plan.options.suppression
    modes = (
        f"the {counted(wanted.k, 'dominant mode')}"
        if wanted.energy is None
        else f"the dominant modes that carry {wanted.energy:.6g} of the energy"
    )
    if wanted.control == "index":
        modes = f"as many other modes, drawn at random (a control, seed {wanted.seed}), instead of {modes}"
    elif wanted.control == "norm":
        modes = f"random directions of matched size (a control, seed {wanted.seed}), instead of {modes}"
    if plan.options.protect:
        protected = counted(plan.options.protect, "query direction")
        modes += f" among those orthogonal to the {protected} that find the first token (found by a run on one token)"
    left = f"leaving {wanted.retain:.6g} of each" if wanted.retain else "completely"
    product = "query-key product" if wanted.channel == "full" else f"query-key product's {wanted.channel} part"
    if plan.options.product == "folded":
        product += ", with the gain of the norm before it folded in"
    layers = [planned.layer.index for planned in plan.layers]
    spared = ", except those that copy (found by a run on random tokens)" if plan.options.spare != "none" else ""
    heads = sum(len(planned.heads) for planned in plan.layers)
    where = f"{'layer' if len(layers) == 1 else 'layers'} {describe(layers)} of {plan.checkpoint.files.name}"
    if target is None:
        written = "write nothing, as no --out is given"
    else:
        kind = _KINDS[target.layout]
        kept = ", with the original bytes of the edited tensors" if target.keep_original else ""
        written = f"write {kind} to {target.out}{kept}"
    return (
        f"A run would remove {modes} of each head's {product}, {left}, in {where} "
        f"({counted(heads, 'head')}){spared}, and {written}."
    )
