"""Test that metrics from items equal those of each benchmark's scorer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qkedit.evaluation.benchmarks import pope, repope
from qkedit.evaluation.benchmarks.amber import scoring as amber
from qkedit.evaluation.benchmarks.hallusionbench import scoring as hallusionbench
from qkedit.evaluation.benchmarks.mme import scoring as mme
from qkedit.evaluation.benchmarks.registry import benchmark_named, benchmark_names
from qkedit.evaluation.files.records import Answer, MeasuredItem, Question, Score
from qkedit.evaluation.files.score_json import score_as_dict, score_from_dict
from qkedit.evaluation.metric import Metric, Unit, measured
from qkedit.evaluation.statistics.intervals import interval, paired
from qkedit.evaluation.statistics.metrics import meaning_of, metrics_of

WORDS = ("Yes", "No", "yes.", "maybe", "\tno", "there is not", "")


def answered(questions: Sequence[Question], seed: int) -> list[Answer]:
    generator = random.Random(seed)
    return [Answer(question.id, generator.choice((*WORDS, str(question.truth)))) for question in questions]


def mme_questions(tasks: Sequence[str]) -> list[Question]:
    return [
        Question(
            f"{task}/{image}.jpg/{number}", f"{image}.jpg", "Is it?", truth, f"{task}/{image}.jpg", {"task": task}
        )
        for task in tasks
        for image in range(6 + 3 * len(task))
        for number, truth in ((1, "yes"), (2, "no"))
    ]


def hallusionbench_questions() -> list[Question]:
    questions = []
    for category, subcategory in (("VD", "math_like"), ("VS", "map")):
        for group in range(12):
            for figure in range(3):
                of_set = (category, subcategory, str(group))
                shown = None if category == "VS" and figure == 0 else (*of_set, str(figure))
                for number in range(2):
                    fields = {"category": category, "hard": figure == 2, "figure": shown}
                    fields["question"] = (*of_set, str(number))
                    name = "_".join((*of_set, str(figure), str(number)))
                    truth = "yes" if number == figure % 2 else "no"
                    questions.append(Question(name, "", "Is it?", truth, "_".join(of_set), fields))
    return questions


def yes_no_questions() -> list[Question]:
    return [
        Question(str(number), f"{number // 6}.jpg", "Is there?", ("yes", "no")[number % 2], f"{number // 6}.jpg")
        for number in range(180)
    ]


def scores(seed: int) -> list[Score]:
    one, several, total = mme_questions(["count"]), mme_questions(mme.TASKS), mme_questions(mme.HALLUCINATION)
    figures, questions = hallusionbench_questions(), yes_no_questions()
    return [
        mme.score(one, answered(one, seed)),
        mme.score(several, answered(several, seed), split="perception"),
        mme.score(total, answered(total, seed), split="hallucination"),
        hallusionbench.score(figures, answered(figures, seed), rule="string"),
        pope.score(questions, answered(questions, seed), split="random"),
        repope.score(questions, answered(questions, seed), split="random"),
    ]


@pytest.mark.parametrize("place", range(6))
def test_metrics_of_items_equal_those_of_the_scorer(place: int) -> None:
    score = scores(3)[place]
    metrics = metrics_of(score.items, score.benchmark)
    shared = metrics.keys() & score.metrics.keys()
    # A total of MME has only a score; all other metrics follow from the items.
    assert shared == score.metrics.keys()
    for name in shared:
        assert interval(score.items, metrics[name], resamples=50).value == pytest.approx(score.metrics[name]), name


def test_metrics_of_amber_are_in_percent_with_the_positive_class_no() -> None:
    questions = [
        replace(question, fields={"dimension": "existence"}, id=str(1005 + number))
        for number, question in enumerate(yes_no_questions())
    ]
    score = amber.score(questions, answered(questions, 3), split="existence")
    metrics = metrics_of(score.items, "amber")
    assert metrics.keys() == score.metrics.keys()
    for name, metric in metrics.items():
        # The official script rounds to one decimal, F1 after its parts.
        assert interval(score.items, metric, resamples=50).value == pytest.approx(score.metrics[name], abs=0.15), name


def test_a_sum_of_ratios_is_resampled_over_images() -> None:
    a, b = scores(3)[2], scores(4)[2]
    found = paired(a.items, b.items, metrics_of(a.items, "mme")["score"])
    assert found.value == pytest.approx(b.metrics["score"] - a.metrics["score"])
    assert found.groups == len({item.group for item in a.items})
    # By hand: images drawn with replacement, the scores of four tasks added up.
    generator = random.Random(1)
    groups: dict[str, list[tuple]] = {}
    for one, other in zip(a.items, b.items, strict=True):
        groups.setdefault(one.group, []).append((one.right, other.right, one.counted, other.counted))
    rows, differences = list(groups.items()), []
    for _ in range(1500):
        drawn = generator.choices(rows, k=len(rows))
        difference = 0.0
        for task in mme.HALLUCINATION:
            answers = [of_image for group, of_image in drawn if group.startswith(f"{task}/")]
            for side, sign in ((1, 1), (0, -1)):
                right = sum(answer[side] for of_image in answers for answer in of_image)
                counted = sum(answer[side + 2] for of_image in answers for answer in of_image)
                both = sum(all(answer[side] for answer in of_image) for of_image in answers)
                difference += sign * (100 * right / counted + 100 * both / len(answers))
        differences.append(difference)
    differences.sort()
    spread = differences[-38] - differences[37]
    assert found.low == pytest.approx(differences[37], abs=0.05 * spread)
    assert found.high == pytest.approx(differences[-38], abs=0.05 * spread)


def test_every_metric_of_a_scorer_has_a_known_direction() -> None:
    directions = {
        name: meaning_of(score.benchmark, name).better.value for score in scores(1) for name in score.metrics
    }
    assert {name for name, direction in directions.items() if direction == "neither"} == {"yes_ratio"}


@pytest.mark.parametrize("name", benchmark_names())
def test_metric_names_are_unique_with_one_unit_per_benchmark(name: str) -> None:
    metrics = benchmark_named(name).metrics
    assert len({metric.name for metric in metrics}) == len(metrics) > 0
    units = {metric.unit for metric in metrics if metric.name != "mean_words"}
    assert (Unit.PERCENT in units) == (name == "amber")


def test_a_metric_that_is_not_a_ratio_is_resampled_by_its_value() -> None:
    """The root of the mean square of what each answer adds."""
    items = [MeasuredItem(str(number), {"size": (number**2, 1)}, group=str(number // 3)) for number in range(60)]
    size = Metric("size", sums=measured("size"), value=lambda totals: np.sqrt(totals[:, 0] / totals[:, 1]))
    found = interval(items, size, resamples=2000)
    assert found.value == pytest.approx(np.sqrt(np.mean(np.arange(60) ** 2)))
    generator = np.random.default_rng(5)
    groups = np.arange(60).reshape(20, 3)
    drawn = np.sort([np.sqrt(np.mean(groups[generator.integers(0, 20, 20)] ** 2)) for _ in range(4000)])
    spread = drawn[3899] - drawn[100]
    assert found.low == pytest.approx(drawn[100], abs=0.06 * spread)
    assert found.high == pytest.approx(drawn[3899], abs=0.06 * spread)
    assert found.method == "bootstrap"


def test_measured_items_survive_json() -> None:
    item = MeasuredItem("1", {"size": (1, 2.5), "words": (3,)}, "yes", "a.jpg")
    score = Score("custom", None, "official", 1, {}, {}, {}, (item,))
    assert score_from_dict(json.loads(json.dumps(score_as_dict(score)))) == score
