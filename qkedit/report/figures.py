"""Format figures with their intervals for people: shares in percent, one decimal, a true minus sign."""

from __future__ import annotations

from dataclasses import dataclass

from qkedit.evaluation.metric import Unit
from qkedit.evaluation.statistics.intervals import Difference, Interval
from qkedit.laboratory.measures import Figure, Measure
from qkedit.laboratory.measures import improves as improves

NOTHING = "–"


def tolerance(value: float, measure: Measure) -> str:
    """Return a tolerated loss in the unit in which the measure is shown: `2 points` for 0.02 of a share."""
    if measure.scale != 1 or measure.meaning.unit is Unit.PERCENT:
        return f"{measure.scale * value:g} {'point' if measure.scale * value == 1 else 'points'}"
    return f"{value:g}"


@dataclass(frozen=True)
class Spelling:
    """The format of the figures of one measure.

    Attributes:
        measure: the measure.
        plain: whether the terminal can show only ASCII.
    """

    measure: Measure
    plain: bool = False

    @property
    def title(self) -> str:
        """The head of a column."""
        return f"{self.measure.title} %" if self.measure.is_share else self.measure.title

    def value(self, value: float | None) -> str:
        """`23.4`."""
        return self._join(value, signed=False)

    def interval(self, interval: Interval) -> str:
        """`23.4 [19.9, 27.3]`."""
        return self._join(interval.value, interval.low, interval.high, signed=False)

    def difference(self, difference: Difference | None) -> str:
        """`−3.2 [−5.1, −1.2]`; empty for the base itself."""
        if difference is None:
            return ""
        return self._join(difference.value, difference.low, difference.high, signed=True)

    def change(self, difference: Difference | None) -> str:
        """`−3.2`; empty for the base."""
        return "" if difference is None else self._join(difference.value, signed=True)

    def seeds(self, figure: Figure) -> str:
        """`21.8 to 24.0`, over the seeds of a control."""
        if figure.least is None or figure.most is None:
            return ""
        return f"{self.value(figure.least)} to {self.value(figure.most)}"

    def _join(self, value: float | None, low: float | None = None, high: float | None = None, *, signed: bool) -> str:
        if value is None:
            return "-" if self.plain else NOTHING
        scale = self.measure.scale
        numbers = [scale * number for number in (value, low, high) if number is not None]
        # A few hundred scenes do not support more than three digits, and a column has no space for more.
        places = 0 if any(abs(number) >= (9.95 if signed else 100.05) for number in numbers) else 1
        texts = [f"{number:{'+' if signed else ''}.{places}f}" for number in numbers]
        texts = ["100" if text == "100.0" else text for text in texts]
        if not self.plain:
            texts = [text.replace("-", "−") for text in texts]
        return texts[0] if len(texts) < 3 else f"{texts[0]} [{texts[1]}, {texts[2]}]"
