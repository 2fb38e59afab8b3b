"""What a reader should know before trusting an edit, from its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator

from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import counted
from qkedit.spectral.options import NEAR_EQUAL
from qkedit.steering.base_files import adapter_warning


def warnings_of(manifest: Manifest, left_out: dict[str, str]) -> Iterator[str]:
    """What a reader should know before trusting the edit."""
    adapter = adapter_warning(left_out.items())
    if adapter is not None:
        yield adapter
    options, heads = manifest.options, manifest.heads
    if manifest.understood_as is not None:
        yield manifest.understood_as
    near_equal = sum(head.gap is not None and head.gap < NEAR_EQUAL for head in heads)
    if near_equal and options.control == "none":
        yield (
            f"{counted(near_equal, 'head has', 'heads have')} near-equal values at the cut (gap < {NEAR_EQUAL}): "
            "which modes went is arbitrary"
        )
    if options.energy is None:
        fewer = sum(len(head.suppressed) < options.k for head in heads)
        if fewer:
            having = counted(fewer, "head has", "heads have")
            yield f"{having} fewer than {options.k} modes to suppress; what was there was taken"
    overshooting = sum((head.scale or 0) > 2 for head in heads)
    if overshooting:
        pushed = counted(overshooting, "head")
        yield f"the norm-matched control pushes directions of {pushed} past zero (scale above 2)"
    if options.channel != "full":
        enlarged = sum(head.relative_change > 1 for head in heads)
        if enlarged:
            yield (
                f"{counted(enlarged, 'head')} moved by more than 100% of the norm: the keys are ill-conditioned, and "
                f"writing the {options.channel} part back through them enlarges it"
            )
    norms = sorted({tensor.norm for tensor in manifest.tensors if tensor.norm is not None})
    if norms:
        yield (
            f"queries and keys are normalised ({', '.join(norms)}): the gains are part of the edited product, and "
            "the normaliser scales up what remains of an edited head's logits"
            + (", and of the other heads of its layer" if any("over all heads" in norm for norm in norms) else "")
        )
    if any(head.key_bias_effect is not None for head in heads):
        yield "keys have biases or shifts: logits also change by what no mode shows (key_bias_effect in the manifest)"
