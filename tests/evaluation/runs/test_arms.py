"""Test the comparison of arms by the time of their answers, with resampled batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkedit.evaluation.answer_times import times_of
from qkedit.evaluation.files.records import Answer
from qkedit.evaluation.files.result_files import read_scores
from qkedit.evaluation.runs.arms import read_arms
from qkedit.evaluation.runs.backend import EvalRequest, Reply
from qkedit.evaluation.runs.evaluate import evaluate
from qkedit.evaluation.statistics.arms import compare_with_base
from tests.evaluation.runs.recording_model import Oracle, task, write_images


def timed(scale: float, fails_at: int | None = None) -> Oracle:
    """A model that answers in batches of two, each slower than the one before."""

    def answer(request: EvalRequest) -> Reply:
        return Reply("Yes.", seconds=scale * (1 + int(request.id) // 2))

    return Oracle(answer=answer, fails_at=fails_at)


def run(tmp_path: Path, name: str, oracle: Oracle) -> None:
    evaluate(oracle, [task()], write_images(tmp_path / "images"), tmp_path / name)


def test_seconds_per_answer_include_answers_before_an_interruption(tmp_path: Path) -> None:
    run(tmp_path, "base", timed(1))
    with pytest.raises(Exception, match="no more"):
        run(tmp_path, "slow", timed(3, fails_at=3))
    run(tmp_path, "slow", timed(3))
    runs = read_arms(tmp_path, ["base", "slow"], ["pope.random"])
    comparison = compare_with_base("base", runs).arms["slow"]
    plain = compare_with_base("base", {name: read_scores(tmp_path / name) for name in runs}).arms["slow"]
    accuracy, time = comparison.splits
    assert (time.name, time.n, time.groups) == ("time.pope.random", 6, 3)
    (seconds,) = time.metrics
    assert (seconds.difference.a, seconds.difference.b, seconds.difference.value) == (2, 6, 4)
    # Three batches differ by 2, 4 and 6, and a resample may hold only one of these.
    assert (seconds.difference.low, seconds.difference.high) == (2, 6)
    # The cost is not among the metrics whose p-values are corrected together.
    assert seconds.p_corrected is None
    assert accuracy == plain.splits[0]


def test_answers_without_a_duration_are_left_out_of_every_arm() -> None:
    odd = [True, -1, "2", None, float("nan")]
    answers = [Answer(str(place), "yes", fields={"seconds": value}) for place, value in enumerate([1, 2.5, *odd])]
    assert times_of({"base": answers, "old": [Answer("0", "yes")]}, "pope") is None
    found = times_of({"base": answers, "part": answers[1:]}, "pope")
    assert found is not None
    assert {name: [item.id for item in score.items] for name, score in found.items()} == {"base": ["1"], "part": ["1"]}
    assert found["base"].metrics == {"seconds_per_answer": 2.5}
