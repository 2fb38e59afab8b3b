"""Test statistics against scipy's and against explicit sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.records import CaptionItem, Item, YesNoItem
from qkedit.evaluation.metric import Better
from qkedit.evaluation.statistics import intervals as statistics
from qkedit.evaluation.statistics.intervals import holm, interval, mcnemar, paired
from qkedit.evaluation.statistics.metrics import groups_of, meaning_of, metrics_of
from tests.evaluation.items import caption_items, yes_no_items


def f1_of(items: list[YesNoItem]) -> float:
    tp = sum(item.parsed == "yes" and item.truth == "yes" for item in items)
    fp = sum(item.parsed == "yes" and item.truth == "no" for item in items)
    fn = sum(item.parsed == "no" and item.truth == "yes" for item in items)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def chair_i_of(items: list[CaptionItem]) -> float:
    return sum(len(item.hallucinated) for item in items) / sum(len(item.found) for item in items)


def false_positive_rate_of(items: list[YesNoItem]) -> float:
    negatives = [item for item in items if item.truth == "no"]
    return sum(item.parsed == "yes" for item in negatives) / len(negatives)


def scipy_bootstrap(
    rows: list[list[Item]], statistic: Callable[[list[Item]], float], resamples: int = 2000
) -> tuple[float, float]:
    """Return the percentile interval of scipy's bootstrap over groups, with items gathered one by one."""

    def of_numbers(numbers: np.ndarray) -> float:
        return statistic([item for number in numbers for item in rows[number]])

    found = stats.bootstrap(
        (np.arange(len(rows)),), of_numbers, vectorized=False, method="percentile", n_resamples=resamples, rng=1
    )
    return found.confidence_interval.low, found.confidence_interval.high


@pytest.mark.parametrize("per_group", [1, 6])
def test_values_equal_explicit_counts(per_group: int) -> None:
    questions, captions = yes_no_items(300, 1, per_group=per_group), caption_items(80, 1)
    assert interval(questions, "f1").value == pytest.approx(f1_of(questions), abs=1e-12)
    assert interval(questions, "hr").value == pytest.approx(false_positive_rate_of(questions), abs=1e-12)
    assert interval(captions, "chair_i").value == pytest.approx(chair_i_of(captions), abs=1e-12)
    assert interval(captions, "mean_words").value == pytest.approx(np.mean([item.words for item in captions]))


def test_the_cluster_bootstrap_equals_that_of_scipy_over_groups() -> None:
    items = yes_no_items(360, 2, per_group=6)
    rows = groups_of(items)
    low, high = scipy_bootstrap(rows, f1_of)
    found = interval(items, "f1")
    assert found.method == "bootstrap"
    assert found.groups == 60
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


def test_correlated_groups_widen_the_interval() -> None:
    # All questions of an image are answered rightly or all wrongly: 40 images have the information of 40 questions.
    items = [YesNoItem(f"{g}.{q}", "yes", "yes", g % 3 > 0, f"image {g}") for g in range(40) for q in range(10)]
    together = interval(items, "accuracy")
    one_each = interval(items[::10], "accuracy", method="bootstrap")
    alone = interval([dataclasses.replace(item, group="") for item in items], "accuracy")
    assert (together.low, together.high) == pytest.approx((one_each.low, one_each.high), abs=0.02)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_a_plain_share_has_the_interval_of_wilson() -> None:
    items = [YesNoItem(str(number), "yes", "yes", number < 45) for number in range(50)]
    found, z = interval(items, "accuracy"), stats.norm.ppf(0.975)
    # Wilson 1927, the textbook formula.
    centre = (45 / 50 + z**2 / 100) / (1 + z**2 / 50)
    half = z * math.sqrt(0.9 * 0.1 / 50 + z**2 / (4 * 50**2)) / (1 + z**2 / 50)
    assert found.method == "wilson"
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    all_right = interval(items[:45], "accuracy")
    assert all_right.high == pytest.approx(1.0)
    assert 0.9 < all_right.low < 1.0


def test_wilson_is_refused_for_other_metrics_and_groups() -> None:
    with pytest.raises(UsageError, match="plain share"):
        interval(caption_items(20, 1), "chair_i", method="wilson")
    with pytest.raises(UsageError, match="plain share"):
        interval(yes_no_items(60, 1, per_group=6), "accuracy", method="wilson")


def sums_written_out(item: CaptionItem, metric: str) -> list[int]:
    if metric == "chair_s":
        return [int(len(item.hallucinated) > 0), 1]
    return [len(item.hallucinated), len(item.found)]


@pytest.mark.parametrize(("metric", "count"), [("chair_i", 90), ("chair_s", 400)])
def test_paired_differences_equal_explicit_resampling(metric: str, count: int) -> None:
    """Test both methods: counted indices for many distinct rows, the multinomial distribution for few."""
    a, b = caption_items(count, 3), caption_items(count, 4, hallucination=0.1)
    found = paired(a, b, metric)
    pairs = zip(a, b, strict=True)
    table = np.array([sums_written_out(one, metric) + sums_written_out(other, metric) for one, other in pairs])
    generator = np.random.default_rng(9)
    differences = []
    for _ in range(8000):
        hits_a, of_a, hits_b, of_b = table[generator.integers(0, count, count)].sum(axis=0)
        differences.append(hits_b / of_b - hits_a / of_a)
    hits_a, of_a, hits_b, of_b = table.sum(axis=0)
    spread = np.std(differences)
    assert found.value == pytest.approx(hits_b / of_b - hits_a / of_a, abs=1e-12)
    assert found.low == pytest.approx(np.quantile(differences, 0.025), abs=0.15 * spread)
    assert found.high == pytest.approx(np.quantile(differences, 0.975), abs=0.15 * spread)


def test_pairing_removes_the_variance_that_runs_share() -> None:
    a = yes_no_items(600, 5, per_group=6)
    b = [dataclasses.replace(item, parsed=item.truth, right=True) if number % 40 == 0 else item
         for number, item in enumerate(a)]  # fmt: skip
    found, alone = paired(a, b, "accuracy"), interval(a, "accuracy")
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    assert found.low > 0 or found.p > 0.05


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.sampled_from([0.0, 0.05, 0.1, 0.2]))
def test_p_values_agree_with_intervals(seed: int, shift: float) -> None:
    found = paired(yes_no_items(120, seed), yes_no_items(120, seed + 1, accuracy=0.8 + shift), "f1", resamples=999)
    assert found.low <= found.value <= found.high or found.low == pytest.approx(found.high)
    if found.p < 0.04:
        assert not found.low < 0 < found.high
    if found.p > 0.06:
        assert found.low <= 0 <= found.high


def test_p_values_are_uniform_under_the_null_hypothesis() -> None:
    """Under the null hypothesis, about one p-value in ten is below 0.1."""
    small = sum(
        paired(yes_no_items(150, seed), yes_no_items(150, 1000 + seed), "accuracy", resamples=400).p < 0.1
        for seed in range(200)
    )
    assert 8 <= small <= 36  # binomial(200, 0.1), about 99.9 % of it


def test_a_run_compared_with_itself_has_no_difference() -> None:
    items = yes_no_items(100, 1)
    found = paired(items, items[::-1], "f1")
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_same_seed_gives_the_same_figures() -> None:
    a, b = caption_items(60, 1), caption_items(60, 2)
    assert paired(a, b, "recall") == paired(a, b, "recall")
    assert paired(a, b, "recall") != paired(a, b, "recall", seed=1)


def test_mcnemar_is_the_sign_test_of_discordant_items() -> None:
    rights = [(True, True)] * 50 + [(True, False)] * 4 + [(False, True)] * 13 + [(False, False)] * 9
    a = [YesNoItem(str(n), "yes", "yes", right) for n, (right, _) in enumerate(rights)]
    b = [YesNoItem(str(n), "yes", "yes", right) for n, (_, right) in enumerate(rights)]
    found = mcnemar(a, b[::-1])
    tail = sum(math.comb(17, k) for k in range(5)) / 2**17
    assert (found.only_a, found.only_b) == (4, 13)
    assert found.p == pytest.approx(2 * tail)
    assert mcnemar(a, a).p == 1.0


def test_a_zero_denominator_gives_no_value() -> None:
    never_yes = [YesNoItem(str(number), "no", "no", True) for number in range(5)]
    found = interval(never_yes, "precision")
    assert (found.value, found.low, found.high) == (None, None, None)
    assert paired(never_yes, never_yes, "recall").value is None
    assert paired(never_yes, never_yes, "recall").p is None


def test_one_group_has_no_interval() -> None:
    items = [YesNoItem(str(number), "yes", "yes", number > 2, "the image") for number in range(9)]
    found = interval(items, "accuracy")
    assert (found.groups, found.low, found.high) == (1, None, None)


def test_invalid_metrics_and_items_are_refused() -> None:
    items = yes_no_items(10, 1)
    with pytest.raises(UsageError, match="choose among accuracy"):
        interval(items, "chair_s")
    with pytest.raises(UsageError, match="1 are only in the first, 0 only in the second"):
        paired(items, items[:9], "f1")
    with pytest.raises(UsageError, match="same items"):
        paired([*items, items[0]], [*items, items[0]], "f1")
    with pytest.raises(UsageError, match="right or wrong"):
        mcnemar(caption_items(3, 1), caption_items(3, 1))
    with pytest.raises(UsageError, match="no items"):
        metrics_of([])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(QkeditError, match=r"pip install 'qkedit\[evaluation\]'"):
        statistics.share_interval(3, 10)
    assert interval(yes_no_items(30, 1), "accuracy", method="bootstrap").low is not None


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float | None]) -> None:
    corrected = holm(p_values)
    assert [p is None for p in corrected] == [p is None for p in p_values]
    for level in (0.01, 0.05, 0.2):
        rejected, left = set(), [place for place, p in enumerate(p_values) if p is not None]
        while left:
            smallest = min(left, key=lambda place: p_values[place])
            if p_values[smallest] * len(left) > level:
                break
            rejected.add(smallest)
            left.remove(smallest)
        assert {place for place, p in enumerate(corrected) if p is not None and p <= level} == rejected


def test_unclear_answers_count_for_accuracy_and_recall() -> None:
    def sums(truth: str) -> dict[str, Sequence[float]]:
        items = [YesNoItem("1", None, truth, False)]
        return {name: metric.sums(items) for name, metric in metrics_of(items).items()}

    unclear = sums("yes")
    assert unclear["accuracy"] == (0, 1)
    assert unclear["recall"] == (0, 1)
    assert unclear["precision"] == (0, 0)
    assert sums("no")["hr"] == (0, 1)


def test_dropped_answers_are_not_counted() -> None:
    items = yes_no_items(40, 1)
    dropped = [YesNoItem(f"dropped {n}", None, "yes", False, counted=False) for n in range(10)]
    for metric in metrics_of(items):
        assert interval([*items, *dropped], metric).value == interval(items, metric).value
    answered = [dataclasses.replace(item, parsed="yes", right=True, counted=True) for item in dropped]
    assert mcnemar([*items, *dropped], [*items, *answered]).only_b == 0


def test_each_metric_has_a_direction() -> None:
    def better(*names: str) -> set[Better]:
        return {meaning_of(*name.split(".")).better for name in names}

    assert better("chair.chair_s", "custom.chair_i", "pope.hr", "amber.cog", "drift.kl") == {Better.LOWER}
    assert better("pope.f1", "amber.accuracy", "mme.acc_plus", "hallusionbench.q_acc") == {Better.HIGHER}
    assert better("pope.yes_ratio", "chair.mean_words", "pope.unheard_of") == {Better.NEITHER}
    # A benchmark that is not installed: the direction follows from the name of the metric.
    assert better("unheard_of.f1") == {Better.HIGHER}
