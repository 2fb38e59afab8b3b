"""Metrics made of items are those that each benchmark's own scorer gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from qkedit.evaluation.benchmarks import hallusionbench, mme, pope, repope
from qkedit.evaluation.benchmarks.amber import scoring as amber
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.metric_units import better
from qkedit.evaluation.statistics.intervals import interval, paired
from qkedit.evaluation.statistics.metrics import metrics_of

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
        hallusionbench.score(figures, answered(figures, seed), parser="string"),
        pope.score(questions, answered(questions, seed), split="random"),
        repope.score(questions, answered(questions, seed), split="random"),
    ]


@pytest.mark.parametrize("place", range(6))
def test_metrics_of_items_are_the_scorers_own(place: int) -> None:
    score = scores(3)[place]
    metrics = metrics_of(score.items, score.benchmark)
    shared = metrics.keys() & score.metrics.keys()
    # A total of MME has a score alone; every other metric of a scorer can be had of its items.
    assert shared == score.metrics.keys()
    for name in shared:
        assert interval(score.items, metrics[name], resamples=50).value == pytest.approx(score.metrics[name]), name


def test_ambers_are_in_percent_and_its_positive_class_is_no() -> None:
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


def test_a_sum_of_ratios_is_resampled_by_image() -> None:
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
    without = {name for score in scores(1) for name in score.metrics if better(name).value == "neither"}
    assert without == {"yes_ratio"}
