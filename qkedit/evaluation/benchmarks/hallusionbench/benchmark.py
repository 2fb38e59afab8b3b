"""HallusionBench as a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qkedit.evaluation.benchmarks.hallusionbench import scoring
from qkedit.evaluation.benchmarks.plain_functions import BenchmarkOfFunctions, Functions
from qkedit.evaluation.files.records import HallusionBenchItem, Item, YesNoItem
from qkedit.evaluation.metric import Better, Metric, Unit


def _answers_right(group: Sequence[HallusionBenchItem]) -> tuple[int, int]:
    return sum(item.right for item in group), sum(item.counted for item in group)


def _sums_all_right(
    key: Callable[[HallusionBenchItem], str | None], hard: bool | None = None
) -> Callable[[Sequence[HallusionBenchItem]], tuple[int, int]]:
    """Return the sums of the share of keys whose answers are all right; `hard` selects items."""

    def sums(group: Sequence[HallusionBenchItem]) -> tuple[int, int]:
        chosen = [item for item in group if hard is None or item.hard == hard]
        return scoring.all_right((key(item), item.right) for item in chosen)

    return sums


def _figure(item: HallusionBenchItem) -> str | None:
    """Return `VD_illusion_0_1` of `VD_illusion_0_1_3`; None for a supplement's question that shows no figure."""
    figure = item.id.rpartition("_")[0]
    return None if figure.startswith("VS_") and figure.endswith("_0") else figure


def _question_of(item: HallusionBenchItem) -> str:
    """Return `VD_illusion_0_3` of `VD_illusion_0_1_3`."""
    group, _, number = item.id.rsplit("_", 2)
    return f"{group}_{number}"


class HallusionBench(BenchmarkOfFunctions):
    """HallusionBench (arXiv 2310.14566): groups are sets of questions and figures that belong together."""

    name = "hallusionbench"
    title = "HallusionBench"
    paper = "2310.14566"
    rules = scoring.PARSERS
    splits = scoring.SPLITS
    metrics = (
        Metric("a_acc", Better.HIGHER, Unit.SHARE, _answers_right, is_share_right=True),
        Metric("f_acc", Better.HIGHER, Unit.SHARE, _sums_all_right(_figure)),
        Metric("q_acc", Better.HIGHER, Unit.SHARE, _sums_all_right(_question_of)),
        Metric("easy_acc", Better.HIGHER, Unit.SHARE, _sums_all_right(_question_of, hard=False)),
        Metric("hard_acc", Better.HIGHER, Unit.SHARE, _sums_all_right(_question_of, hard=True)),
    )
    item_kinds = (YesNoItem,)
    functions = Functions(scoring.load_questions, scoring.score, scoring.load_answers)

    def metrics_of(self, items: Sequence[Item]) -> tuple[Metric, ...]:
        """Return the metrics; result files of other tools may lack the mark of hard questions."""
        return self.metrics if all(isinstance(item, HallusionBenchItem) for item in items) else self.metrics[:3]
