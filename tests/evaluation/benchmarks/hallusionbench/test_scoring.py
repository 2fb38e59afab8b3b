"""Test HallusionBench against a slow computation of its three accuracies, the judge's labels and word matching."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.hallusionbench import scoring
from qkedit.evaluation.files.records import Answer, Score
from tests.evaluation.published import DATA, needs_data

# Two categories, two sets, figures 0 to 2, two questions; one set of VS lacks the edited figure. As in the published
# files, VD has an original figure and edited ones; VS has no figure, then an original one, then an edited one.
ROWS: list[dict[str, Any]] = [
    {
        "category": category,
        "subcategory": "chart",
        "visual_input": {"VD": "122", "VS": "012"}[category][figure],
        "set_id": str(group),
        "figure_id": str(figure),
        "sample_note": "",
        "question_id": str(number),
        "question": f"Is number {number} right?",
        "gt_answer_details": "",
        "gt_answer": str((figure + number) % 2),
        "filename": None
        if (category, figure) == ("VS", 0)
        else f"./hallusion_bench/{category}/chart/{group}_{figure}.png",
    }
    for category in ("VD", "VS")
    for group in range(2)
    for figure in range(2 if category == "VS" and group else 3)
    for number in range(2)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    (directory / "HallusionBench.json").write_text(json.dumps(ROWS, indent=1))
    return directory


def slow_shares(rows: list[dict[str, Any]], labels: list[str]) -> dict[str, float | None]:
    def right(row: dict[str, Any], label: str) -> bool:
        return label == "1" or (label == "2" and row["category"] == "VS" and row["figure_id"] == "0")

    marked = [(row, right(row, label)) for row, label in zip(rows, labels, strict=True)]

    def share(keys: list[str], chosen: list[tuple[dict[str, Any], bool]]) -> float | None:
        names = {tuple(row[key] for key in keys) for row, _ in chosen}
        good = 0
        for name in names:
            good += all(good for row, good in chosen if tuple(row[key] for key in keys) == name)
        return good / len(names) if names else None

    of_set = ["category", "subcategory", "set_id"]
    shown = [(row, good) for row, good in marked if not (row["category"] == "VS" and row["figure_id"] == "0")]
    return {
        "a_acc": sum(good for _, good in marked) / len(marked),
        "f_acc": share([*of_set, "figure_id"], shown),
        "q_acc": share([*of_set, "question_id"], marked),
        "easy_acc": share([*of_set, "question_id"], [(r, good) for r, good in marked if r["visual_input"] != "2"]),
        "hard_acc": share([*of_set, "question_id"], [(r, good) for r, good in marked if r["visual_input"] == "2"]),
    }


def answers_with(labels: list[Any], rows: list[dict[str, Any]] = ROWS) -> list[Answer]:
    keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return [
        Answer("_".join(row[key] for key in keys), "Yes.", None, "", {"correctness": label})
        for row, label in zip(rows, labels, strict=True)
    ]


@given(
    st.lists(st.sampled_from("1112"), min_size=len(ROWS), max_size=len(ROWS)),
    st.sets(st.integers(0, len(ROWS) - 1), max_size=4),
)
def test_the_three_accuracies_equal_the_official_ones(data: Path, labels: list[str], wrong: set[int]) -> None:
    labels = ["0" if number in wrong else label for number, label in enumerate(labels)]
    questions = scoring.load_questions(data, None)
    score = scoring.score(questions, answers_with(labels))
    assert score.rule == "judge"
    assert score.metrics == slow_shares(ROWS, labels)
    assert score.printed["Acc per figure"] == str(
        round(100 * score.counts["f_acc_right"] / score.counts["f_acc_of"], 4)
    )
    for split in ("VD", "VS"):
        chosen = [(row, label) for row, label in zip(ROWS, labels, strict=True) if row["category"] == split]
        part = scoring.score(questions, answers_with(labels), split=split)
        assert part.metrics == slow_shares([row for row, _ in chosen], [label for _, label in chosen])
        assert part.n == len(chosen)


def test_unclear_is_right_for_questions_without_a_figure(data: Path) -> None:
    score = scoring.score(scoring.load_questions(data, None), answers_with([2] * len(ROWS)))
    right = {item.id for item in score.items if item.right}
    assert right == {"VS_chart_0_0_0", "VS_chart_0_0_1", "VS_chart_1_0_0", "VS_chart_1_0_1"}
    assert {item.parsed for item in score.items} == {"unclear"}
    assert score.counts["f_acc_of"] == 6 + 3


@pytest.mark.parametrize("label", ["1", 1, " 1 "])
def test_labels_may_be_strings_or_numbers(data: Path, label: object) -> None:
    assert scoring.score(scoring.load_questions(data, None), answers_with([label] * len(ROWS))).metrics["a_acc"] == 1.0


@pytest.mark.parametrize("label", ["3", "", "correct", 1.0, True, None, [1]])
def test_other_labels_are_refused(data: Path, label: object) -> None:
    answers = answers_with(["1"] * (len(ROWS) - 1) + [label])
    with pytest.raises(
        QkeditError, match=r"of 'VS_chart_1_1_1' is not one of 0 \(wrong\), 1 \(right\) and 2 \(unclear\)"
    ):
        scoring.score(scoring.load_questions(data, None), answers)


def test_labels_of_only_some_answers_are_refused(data: Path) -> None:
    questions, answers = scoring.load_questions(data, None), answers_with(["1"] * len(ROWS))
    bare = [Answer(answer.id, answer.text) for answer in answers]
    for parser in (None, "judge"):
        with pytest.raises(QkeditError, match="the answer 'VD_chart_0_0_0' has no judge's label; give 0, 1 or 2"):
            scoring.score(questions, [bare[0], *answers[1:]], rule=parser)
    assert scoring.score(questions, bare).rule == "string"
    assert scoring.score(questions, answers, rule="string").rule == "string"
    with pytest.raises(UsageError, match="there is no parser 'gpt'"):
        scoring.score(questions, answers, rule="gpt")
    with pytest.raises(UsageError, match="there is no split 'vd'"):
        scoring.score(questions, answers, split="vd")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Yes, it is.", "yes"),
        ("**No**", "no"),
        ("I would say: no!", "no"),
        ("NO", "no"),
        ("“Yes”", "yes"),
        ("Yes。", "yes"),
        ("_yes_", "yes"),
        ("", None),
        ("Perhaps", None),
        ("Yes and no", None),
        ("yes yes", "yes"),
        ("Nope, none, nothing", None),
        ("yes/no", None),
        ("It is not", None),
        ("no-one knows", None),
        ("\nNo\n", "no"),
    ],
)
def test_only_whole_words_are_matched(text: str, found: str | None) -> None:
    assert scoring.match_words(text) == found


def test_word_matching_causes_a_warning(data: Path) -> None:
    questions = scoring.load_questions(data, None)
    texts = {"yes": "Yes, surely.", "no": "No."}
    answers = [Answer(question.id, texts[str(question.truth)]) for question in questions]
    score = scoring.score(questions, answers)
    assert score.metrics == dict.fromkeys(("a_acc", "f_acc", "q_acc", "easy_acc", "hard_acc"), 1.0)
    assert score.warnings == ("string-matched, not comparable with judged numbers",)
    unclear = scoring.score(questions, [Answer(question.id, "Hm.") for question in questions])
    assert unclear.counts["a_acc_right"] == 4
    assert {item.parsed for item in unclear.items} == {None}


def test_answers_are_read_in_the_official_format(data: Path, tmp_path: Path) -> None:
    rows = [row | {"model_prediction": "Yes.", "gpt4v_output_gpt_check": "1"} for row in ROWS]
    for category in ("VD", "VS"):
        file = tmp_path / f"hallusion_output_{category.lower()}_model.json"
        file.write_text(json.dumps([row for row in rows if row["category"] == category]))
    score = scoring.score(scoring.load_questions(data, None), scoring.load_answers(tmp_path))
    assert (score.rule, score.metrics["a_acc"]) == ("judge", 1.0)
    part = scoring.score(
        scoring.load_questions(data, "VD"), scoring.load_answers(tmp_path / "hallusion_output_vd_model.json")
    )
    assert part.n == 12
    common = tmp_path / "answers.jsonl"
    common.write_text('{"id": "VD_chart_0_0_0", "answer": "No."}')
    partial = scoring.score(scoring.load_questions(data, None), scoring.load_answers(common), allow_missing=True)
    assert (partial.n, partial.counts["missing"]) == (1, len(ROWS) - 1)
    assert partial.metrics["hard_acc"] is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(QkeditError, match=r"has no \.json file"):
        scoring.load_answers(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"category": "VX"}, "category 'VX' with gt_answer '0' is not in the benchmark"),
        ({"gt_answer": "2"}, "category 'VD' with gt_answer '2' is not in the benchmark"),
        ({"visual_input": "3"}, "visual_input '3' is not one of 0, 1, 2"),
        ({"visual_input": None}, "visual_input is neither a whole number nor a name"),
        ({"set_id": None}, "set_id is neither a whole number nor a name"),
        ({}, "the question 'VD_chart_0_0_0' occurs twice"),
    ],
)
def test_broken_questions_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, [ROWS[0], ROWS[0] | change])))
    with pytest.raises(QkeditError) as caught:
        scoring.load_questions(file, None)
    assert (caught.value.where, caught.value.what) == (f"{file}, line 2", sentence)


def published_score(texts: str) -> Score:
    questions = scoring.load_questions(DATA, None)
    return scoring.score(questions, [Answer(question.id, texts) for question in questions])


@needs_data
def test_all_published_questions_are_read() -> None:
    questions = scoring.load_questions(DATA, None)
    assert Counter(question.fields["category"] for question in questions) == {"VD": 591, "VS": 538}
    counts = published_score("Yes.").counts
    assert [counts[name] for name in ("a_acc_of", "f_acc_of", "q_acc_of")] == [1129, 346, 455]
    assert counts["a_acc_right"] == 484
    assert published_score("").counts["a_acc_right"] == 178
    assert sum(not question.image for question in questions) == 178


# The one row of the published leaderboard (README.md at 14a1779f, after September 2024) with all its digits: ViLT.
LEADERBOARD = {"q_acc": 8.3516, "f_acc": 11.2717, "easy_acc": 37.8022, "hard_acc": 45.3488, "a_acc": 44.4641}


@needs_data
def test_the_published_leaderboard_has_our_denominators() -> None:
    """A share with four decimals determines its denominator: no count of 452 figures gives 45.3488."""
    counts = published_score("Yes.").counts
    for name, published in LEADERBOARD.items():
        total = counts[f"{name}_of"]
        assert published in {round(100 * right / total, 4) for right in range(total + 1)}, name
    assert 45.3488 not in {round(100 * right / 452, 4) for right in range(453)}


@needs_data
def test_the_published_sample_is_matched() -> None:
    answers = scoring.load_answers(DATA / "hallusionbench" / "HallusionBench_result_sample.json")
    score = scoring.score(scoring.load_questions(DATA, None), answers, allow_missing=True)
    assert (score.n, score.counts["missing"]) == (254, 1129 - 254)
    texts = {answer.id: answer.text for answer in answers}
    plain = [
        item for item in score.items if texts[item.id].startswith(("Yes,", "No,")) and "." not in texts[item.id][:-1]
    ]
    assert len(plain) > 100
    # None of these sentences contains the other word (all were read).
    assert all(item.parsed == texts[item.id].partition(",")[0].lower() for item in plain)
