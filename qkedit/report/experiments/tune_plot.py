"""Plot a search: each trial's objective against a guarded measure or its drift, and the trade-offs among them.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qkedit.laboratory.measures import Measure
from qkedit.laboratory.tuning.result import Ended, TrialResult, TuneReport
from qkedit.report.plots import encoded, entitle, require_matplotlib


@dataclass(frozen=True)
class _Axis:
    """A measure, or (None) the drift."""

    measure: Measure | None

    @property
    def title(self) -> str:
        if self.measure is None:
            return "drift, nats per token"
        return f"{self.measure.name} %" if self.measure.is_share else self.measure.name

    def of(self, trial: TrialResult) -> float | None:
        if self.measure is None:
            return trial.effect.drift
        return self._scaled(trial.values[self.measure.name])

    def of_base(self, report: TuneReport) -> float | None:
        return 0.0 if self.measure is None else self._scaled(report.base[self.measure.name])

    def _scaled(self, value: float | None) -> float | None:
        assert self.measure is not None
        return None if value is None else self.measure.scale * value


def tune_plot(report: TuneReport, file_format: str) -> bytes:
    """Return the plot as `png`, `svg` or `pdf`; the same report gives the same bytes."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    finished = [trial for trial in report.trials if trial.ended is Ended.FINISHED]
    across = [_Axis(measure) for measure in report.goal.shown[1:]]
    if any(trial.effect.drift is not None for trial in finished) or not across:
        across.append(_Axis(None))
    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 8, "axes.titlesize": 8}):
        plot = Figure(figsize=(max(5.0, 4.2 * len(across)), 4.0), layout="constrained")
        entitle(plot, f"{report.model}: trials on the half that chooses", 9)
        areas = plot.subplots(1, len(across), squeeze=False, sharey=True)[0]
        objective = _Axis(report.goal.objective)
        for axes, axis in zip(areas, across, strict=True):
            for label, (trials, marker, colour) in groups(report).items():
                points = _points(trials, axis, objective)
                if points:
                    size = 110 if marker == "*" else 26
                    axes.scatter(*zip(*points, strict=True), marker=marker, c=colour, s=size, label=label)
            base = (axis.of_base(report), objective.of_base(report))
            if None not in base:
                axes.scatter([base[0]], [base[1]], marker="P", c="black", s=60, label="base")
            axes.set_xlabel(axis.title)
        areas[0].set_ylabel(objective.title)
        areas[-1].legend(fontsize=7)
        plot.supxlabel(_verdict(report), fontsize=8, fontweight="bold")
        return encoded(plot, file_format)


def groups(report: TuneReport) -> dict[str, tuple[Sequence[TrialResult], str, str]]:
    """Return the finished trials to draw, by the words of the legend, with marker and colour."""
    finished = [trial for trial in report.trials if trial.ended is Ended.FINISHED]
    kept = [trial for trial in finished if not trial.broken]
    # An edit that breaks a guard is no choice, whatever it gains for that.
    pareto = {trial.number for trial in report.pareto}
    return {
        "keeps the guards": ([trial for trial in kept if trial.number not in pareto], "o", "#9aa5b1"),
        "breaks a guard": ([trial for trial in finished if trial.broken], "x", "#c46a5a"),
        "trade-off": ([trial for trial in kept if trial.number in pareto], "o", "#1f5fa8"),
        f"best, {report.verdict.value}": ([report.best] if report.best is not None else [], "*", "#1f8a4c"),
    }


def _verdict(report: TuneReport) -> str:
    if report.best is None:
        return "No edit is better than none; the other half was not asked"
    return f"Trial {report.best.number} ({report.best.edit.name}): {report.verdict.value} on the other half"


def _points(trials: Sequence[TrialResult], axis: _Axis, objective: _Axis) -> list[tuple[float, float]]:
    pairs = [(axis.of(trial), objective.of(trial)) for trial in trials]
    return [(x, y) for x, y in pairs if x is not None and y is not None]
