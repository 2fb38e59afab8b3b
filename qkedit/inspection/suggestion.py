"""Propose layers and k from the spectra alone. This is our own heuristic: a place to start, not a promise.

Whether such an edit helps is not in the spectra. So every suggestion names its evidence, and the search that decides.

A mode counts as outlying in its head when σ lies above the upper fence of the head's singular values,
`Q3 + 1.5 (Q3 − Q1)` (Tukey). A layer scores the share of energy that outlying modes carry, on average over its heads.
It stands out when it exceeds the median layer by more than 1.4826 median absolute deviations (one standard deviation
of a normal law) and by five points of energy. k is the number of outlying modes of the median head among the layers
that stand out.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles
from typing import Any

from qkedit.demo import DEMOS
from qkedit.inspection.spectra import HeadSpectrum, Inspection
from qkedit.selection import describe
from qkedit.spectral.sink import protection_text
from qkedit.steering.steer_options import SteerOptions

FENCE = 1.5
DEVIATION = 1.4826
LEAST_DIFFERENCE = 0.05
# An edit of more modes than this is no longer one of a few dominant modes.
LARGEST_K = 16


# Findings of docs/laboratory.md, "Real weights"; a test compares them with its tables.
FROM_SPECTRA = "Evidence: the layers and k come from these spectra alone; no run of the model is behind them."
COST = (
    "On the model with really trained weights that was measured, an edit was not free, and the same edit of the "
    "symmetric channel (--channel symmetric) cost a third of that of the full one (docs/laboratory.md, Real weights)."
)
COST_OF_SYMMETRIC = (
    "On the model with really trained weights that was measured, an edit was not free; one of the symmetric channel "
    "cost a third of that of the full one (docs/laboratory.md, Real weights)."
)
NO_GAIN = "No result in this repository shows that such an edit makes a published model hallucinate less."


@dataclass(frozen=True)
class Suggestion:
    """The layers and k that the spectra suggest, and what the suggestion rests on.

    Attributes:
        layers: the layers; empty where none stands out.
        k: the number of modes; 0 without layers.
        scores: by layer the share of the energy in outlying modes, 0–1.
        threshold: a layer above it stands out.
        reason: what the spectra show.
        command: the command that makes the edit; None without layers.
        evidence: sentences about what is known of such edits, and of what is not.
        tune: the command that searches for an edit on questions; None for a model without vision.
    """

    layers: tuple[int, ...]
    k: int
    scores: dict[int, float]
    threshold: float
    reason: str
    command: str | None
    evidence: tuple[str, ...]
    tune: str | None

    @property
    def search(self) -> str:
        """The sentence before the command of the search."""
        if not self.layers:
            return "Where no layer stands out, search all of them with questions whose answers you know:"
        return "Whether it helps on your images, a search finds out, among other edits:"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them, labelled as a heuristic."""
        return {"heuristic": True, **asdict(self)}


def suggest(inspection: Inspection, options: SteerOptions | None = None, model: str | None = None) -> Suggestion:
    """Return layers and k for `steer`; only layers that were inspected are proposed.

    Args:
        inspection: the spectra.
        options: the options of the inspection; the proposed command repeats those that it needs.
        model: the model as `steer` finds it; None for the inspection's name, which for a directory is only its last
            part.
    """
    outlying = {
        spectra.layer: [outlying_modes(head.singular_values[: head.rank]) for head in spectra.heads]
        for spectra in inspection.layers
    }
    scores = {
        spectra.layer: fmean(
            _top_energy(head, count) for head, count in zip(spectra.heads, outlying[spectra.layer], strict=True)
        )
        for spectra in inspection.layers
    }
    middle = median(scores.values())
    deviation = median(abs(score - middle) for score in scores.values())
    threshold = middle + max(DEVIATION * deviation, LEAST_DIFFERENCE)
    chosen = tuple(layer for layer, score in scores.items() if score > threshold)
    options, name = options or SteerOptions(), model or inspection.model
    search = None if options.allow_text_only else _tune(name, inspection.revision)
    if not chosen:
        reason = (
            f"no layer stands out: outlying modes carry {middle:.0%} of the energy in the median layer (on average "
            "over its heads), and no layer has clearly more than the others"
        )
        return Suggestion((), 0, scores, threshold, reason, None, (NO_GAIN,), search)
    counts = [count for layer in chosen for count in outlying[layer]]
    k = min(max(1, round(median(counts))), LARGEST_K)
    best = max(chosen, key=scores.__getitem__)
    least = f" and more than {threshold:.0%} in each layer proposed" if len(chosen) > 1 else ""
    reason = (
        f"outlying modes carry {scores[best]:.0%} of the energy in layer {best} (on average over its heads){least}, "
        f"against {middle:.0%} in the median layer; the median head of "
        f"{'these layers' if least else 'this layer'} has {median(counts):g} such modes"
    )
    command = _command(name, inspection, options, chosen, k)
    cost = COST if inspection.channel == "full" else COST_OF_SYMMETRIC
    return Suggestion(chosen, k, scores, threshold, reason, command, (FROM_SPECTRA, cost, NO_GAIN), search)


def outlying_modes(values: Sequence[float]) -> int:
    """Return the number of singular values above their upper fence. They must be descending."""
    if len(values) < 4:
        return 0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return sum(value > high + FENCE * (high - low) for value in values)


def _top_energy(head: HeadSpectrum, count: int) -> float:
    squares = [value * value for value in head.singular_values]
    return sum(squares[:count]) / sum(squares) if count else 0.0


def _tune(model: str, revision: str | None) -> str:
    if model in DEMOS:
        return f"qkedit tune {model} --scenes 200 --out tune.jsonl"
    named = shlex.quote(model) + (f" --revision {revision}" if revision else "")
    return (
        f"qkedit tune {named} -b custom --questions questions.jsonl --images ./photos --objective hr --out tune.jsonl"
    )


def _command(model: str, inspection: Inspection, options: SteerOptions, layers: tuple[int, ...], k: int) -> str:
    revision = f" --revision {inspection.revision}" if inspection.revision else ""
    channel = f" --channel {inspection.channel}" if inspection.channel != "full" else ""
    heads = f" --heads {shlex.quote(options.heads)}" if options.heads != "all" else ""
    text_only = " --allow-text-only" if options.allow_text_only else ""
    protect = f" --protect {protection_text(options.protect)}" if options.protect else ""
    product = f" --product {options.product}" if options.product != "raw" else ""
    chosen = describe(layers).replace(" ", "")
    return (
        f"qkedit steer {shlex.quote(model)}{revision} --layers {chosen}{heads} --k {k}{channel}{product}{protect}"
        f"{text_only} --out ./edited"
    )
