"""Test the papers' claims by contrasts of a sweep, with decision rules fixed in advance.

A contrast is the difference of two groups of arms on the same scenes. It pools many cells, so that no single cell is
picked. A claim predicts its sign: it is *supported* if the whole 95 % interval is on that side of zero, *contradicted*
if the whole interval is on the other side, else *undecided*. Contrasts about the cost of an edit have no claim, and
are shown as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.arms import BASE, Arm
from qkedit.laboratory.measures import MEASURES, Measure, Outcome, contrast
from qkedit.laboratory.sweep_grid import SweepSettings
from qkedit.laboratory.tuning.space import Candidate

# Hallucination in captions and in questions, and the figures that may suffer when it is reduced.
HALLUCINATION = ("chair_s", "hr_adversarial")
COST = ("recall", "f1_adversarial")

OutcomeOf = Callable[[Arm], Outcome]


@dataclass(frozen=True)
class Contrast:
    """One group of arms minus another.

    Attributes:
        claim: the name of the claim.
        name: the two groups, "a − b".
        measure: the measure.
        difference: the difference with its interval.
        claimed: the sign that the claim predicts, −1 or +1; 0 without a claim.
    """

    claim: str
    name: str
    measure: Measure
    difference: Difference
    claimed: int = 0

    @property
    def verdict(self) -> str:
        """The verdict on the claim by the interval; empty without a claim."""
        low, high = self.difference.low, self.difference.high
        if not self.claimed or low is None or high is None:
            return ""
        if low <= 0 <= high:
            return "undecided"
        return "supported" if (low > 0) == (self.claimed > 0) else "contradicted"


def contrasts(settings: SweepSettings, outcome_of: OutcomeOf) -> Iterator[Contrast]:
    """Yield the contrasts of all claims over a sweep's first half.

    Args:
        settings: a grid with the channels full, symmetric and antisymmetric.
        outcome_of: a function that scores an arm on the first half of the scenes.
    """
    edits = {cell: outcome_of(cell.arm()) for cell in settings.cells()}
    base = outcome_of(Arm(BASE))
    full = [cell for cell in edits if cell.channel == "full"]

    controls = [[outcome_of(arm) for arm in cell.controls(settings.control, settings.seeds)] for cell in full]
    every = [one for seeds in controls for one in seeds]
    repeated = [edits[cell] for cell, seeds in zip(full, controls, strict=True) for _ in seeds]
    claim = "dominant rather than random modes"
    yield from _of(claim, "dominant − base", [base] * len(full), [edits[cell] for cell in full], claimed=-1)
    yield from _of(claim, "random − base", [base] * len(every), every)
    yield from _of(claim, "dominant − random", every, repeated, claimed=-1)

    claim = "symmetric rather than antisymmetric"
    parts = {
        channel: [edits[cell] for cell in edits if cell.channel == channel]
        for channel in ("symmetric", "antisymmetric")
    }
    for channel, outcomes in parts.items():
        yield from _of(claim, f"{channel} − base", [base] * len(outcomes), outcomes)
    yield from _of(claim, "symmetric − antisymmetric", parts["antisymmetric"], parts["symmetric"], claimed=-1)

    claim = "middle layers rather than early or late"
    inner, outer = _inner_and_outer(settings.layers)
    groups = {
        name: [edits[cell] for cell in full if cell.layers in layers]
        for name, layers in (("middle", inner), ("early and late", outer))
    }
    for name, outcomes in groups.items():
        yield from _of(claim, f"{name} − base", [base] * len(outcomes), outcomes)
    middle, others = groups["middle"], groups["early and late"]
    # Each group is repeated until both are equally large, so that each counts as a whole.
    yield from _of(claim, "middle − early and late", others * len(middle), middle * len(others), claimed=-1)


def by_cell(
    settings: SweepSettings, outcome_of: OutcomeOf, channel: str, measure: Measure
) -> Iterator[tuple[Candidate, Difference, Difference]]:
    """Yield each cell of a channel with its difference from the base, and that of its controls."""
    base = outcome_of(Arm(BASE))
    for cell in settings.cells():
        if cell.channel == channel:
            controls = [outcome_of(arm) for arm in cell.controls(settings.control, settings.seeds)]
            yield (
                cell,
                contrast([base], [outcome_of(cell.arm())], measure),
                contrast([base] * len(controls), controls, measure),
            )


def _of(
    claim: str, name: str, before: Sequence[Outcome], after: Sequence[Outcome], claimed: int = 0
) -> Iterator[Contrast]:
    """Yield the same contrast by every measure; measures of the cost have no claim."""
    for measure in (MEASURES[measure] for measure in (*HALLUCINATION, *COST)):
        side = claimed if measure.name in HALLUCINATION else 0
        yield Contrast(claim, name, measure, contrast(before, after, measure), side)


def _inner_and_outer(layers: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split alternatives from the first layers to the last into the middle half and the rest; of three, the second."""
    quarter = (len(layers) + 1) // 4
    inner = layers[quarter : len(layers) - quarter]
    return inner, [one for one in layers if one not in inner]
