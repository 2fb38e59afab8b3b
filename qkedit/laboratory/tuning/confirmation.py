"""The confirmation of a choice: the best edit on the half of the questions that was not used to choose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from qkedit.evaluation.statistics.intervals import Difference
from qkedit.laboratory.measures import Measure, Outcome, Row, against, compare, improves
from qkedit.laboratory.tuning.goal import Goal


class Verdict(Enum):
    """What a search or a sweep found."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    NOTHING = "nothing"  # on the first half already, nothing could be chosen


@dataclass(frozen=True)
class Confirmation:
    """The best edit on the half of the questions that was not used to choose it.

    Attributes:
        rows: base, `steer`'s default edit (where it is compared), best edit and its random controls.
        to_default: by measure, the best edit minus the default edit; empty if that is not compared.
        to_controls: by measure, the best edit minus its controls; empty without controls.
        broken: the guards that the best edit breaks here.
        is_better: whether the interval of the objective's difference from the base lies on the better side of 0.
        beats_controls: likewise for the difference from the controls; None without controls.
    """

    rows: tuple[Row, ...]
    to_default: Mapping[str, Difference]
    to_controls: Mapping[str, Difference]
    broken: tuple[str, ...]
    is_better: bool
    beats_controls: bool | None

    @property
    def verdict(self) -> Verdict:
        """Confirmed if the edit is better here, too, and keeps the guards."""
        return Verdict.CONFIRMED if self.is_better and not self.broken else Verdict.NOT_CONFIRMED

    def as_dict(self) -> dict[str, Any]:
        """Return the confirmation as `--json` prints it."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "to_default": {name: asdict(one) for name, one in self.to_default.items()},
            "to_controls": {name: asdict(one) for name, one in self.to_controls.items()},
            "broken_guards": list(self.broken),
            "is_better": self.is_better,
            "beats_controls": self.beats_controls,
        }


def confirmation_of(
    goal: Goal,
    base: Outcome,
    best: Outcome,
    controls: Sequence[Outcome],
    default: Outcome | None = None,
    measures: Sequence[Measure] | None = None,
) -> Confirmation:
    """Compare the best edit with the base, its controls and the default edit on the same questions.

    Args:
        goal: the objective and the guards.
        base: the outcome of the model without an edit.
        best: the outcome of the best edit.
        controls: the outcomes of its random controls, with different seeds.
        default: the outcome of `steer`'s default edit, to be compared as well.
        measures: the measures to compare, the goal's among them; None for the goal's alone.
    """
    measures = goal.shown if measures is None else tuple(measures)
    rows = compare([base, *([] if default is None else [default]), best, *controls], base, measures)
    own = next(row for row in rows if row.name == best.arm.name).figures[goal.objective.name]
    to_controls = {one.name: against(best, controls, one) for one in measures} if controls else {}
    return Confirmation(
        rows,
        {} if default is None else {one.name: against(best, [default], one) for one in measures},
        to_controls,
        goal.broken(best, base),
        improves(goal.objective, own.difference) is True,
        improves(goal.objective, to_controls[goal.objective.name]) is True if controls else None,
    )
