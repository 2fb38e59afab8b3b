"""Warnings about an edit, from its manifest alone."""

from __future__ import annotations

from collections.abc import Iterator

from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import counted
from qkedit.selection import describe
from qkedit.spectral.suppression import NEAR_EQUAL
from qkedit.steering.base_files import adapter_warning

# As a share of two edits' sum, the part that both remove; rounding to 16 bits alone gives some thousandths.
NOTEWORTHY_OVERLAP = 0.01


def warnings_of(manifest: Manifest, left_out: dict[str, str]) -> Iterator[str]:
    """Yield warnings to read before trusting the edit."""
    adapter = adapter_warning(left_out.items())
    if adapter is not None:
        yield adapter
    options, heads = manifest.options, manifest.heads
    if manifest.understood_as is not None:
        yield manifest.understood_as
    near_equal = sum(head.gap is not None and head.gap < NEAR_EQUAL for head in heads)
    if near_equal and options is not None and options.control == "none":
        yield (
            f"{counted(near_equal, 'head has', 'heads have')} near-equal values at the cut (gap < {NEAR_EQUAL}): "
            "which modes were suppressed is arbitrary"
        )
    if options is not None and options.energy is None:
        fewer = sum(len(head.suppressed) < options.k for head in heads)
        if fewer:
            having = counted(fewer, "head has", "heads have")
            yield f"{having} fewer than {options.k} modes; all of them were suppressed"
    overshooting = sum((head.scale or 0) > 2 for head in heads)
    if overshooting:
        pushed = counted(overshooting, "head")
        yield f"the norm-matched control pushes directions of {pushed} past zero (scale above 2)"
    if options is not None and options.channel != "full":
        enlarged = sum(head.relative_change > 1 for head in heads)
        if enlarged:
            yield (
                f"{counted(enlarged, 'head')} moved by more than 100% of the norm: the keys are ill-conditioned, and "
                f"writing the {options.channel} part back through them enlarges it"
            )
    yield from _stack_warnings(manifest)
    norms = sorted({tensor.norm for tensor in manifest.tensors if tensor.norm is not None})
    if norms:
        yield (
            f"queries and keys are normalised ({', '.join(norms)}): the gains are part of the edited product, and "
            "the normaliser scales up what remains of an edited head's logits"
            + (", and of the other heads of its layer" if any("over all heads" in norm for norm in norms) else "")
        )
    if any(head.key_bias_effect is not None for head in heads):
        yield "keys have biases or shifts: logits also change outside the modes (key_bias_effect in the manifest)"


def _stack_warnings(manifest: Manifest) -> Iterator[str]:
    """Yield warnings about heads that several edits change."""
    found = [
        (tensor.layer, head)
        for tensor in manifest.tensors
        for head in tensor.heads
        if head.overlap is not None and head.overlap > NOTEWORTHY_OVERLAP
    ]
    if found:
        overlap, order = (max(getattr(head, name) or 0 for _, head in found) for name in ("overlap", "order"))
        layers = sorted({layer for layer, _ in found})
        where = f"layer{'s' if len(layers) > 1 else ''} {describe(layers)}"
        yield (
            f"several edits act on common directions of {counted(len(found), 'head')} in {where}: what they "
            f"share is removed twice (up to {overlap:.1%} of a head's change), and one after the other they would "
            f"depend on their order (up to {order:.1%}); steer the output of the first one to remove it once"
        )
