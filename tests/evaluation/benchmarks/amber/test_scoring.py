"""Test AMBER's yes-or-no questions against a slow copy of the official script, its quirks and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.amber import scoring as amber
from qkedit.evaluation.files.records import Answer, Question, Score
from qkedit.evaluation.files.score_json import score_as_dict, score_from_dict
from qkedit.evaluation.statistics.metrics import metrics_of
from tests.cli.command import qkedit
from tests.evaluation.published import DATA, needs_data

TYPES = {
    "discriminative-hallucination": "ha",
    "discriminative-attribute-state": "as",
    "discriminative-attribute-number": "an",
    "discriminative-attribute-action": "aa",
    "discriminative-relation": "asso",
    "relation": "asso",
}
PREFIXES = {
    "existence": ["ha"],
    "attribute": ["as", "an", "aa"],
    "state": ["as"],
    "number": ["an"],
    "action": ["aa"],
    "relation": ["asso"],
    "discriminative": [""],
}
_responses = st.sampled_from(["Yes", "No", "Yes", "No", "yes", "no", "Yes.", "No, it is not.", " No", "", "Not"])
_row = st.tuples(st.sampled_from(sorted(TYPES)), st.sampled_from(["yes", "no"]), _responses)


def slow_script(rows: list[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Follow the official script sum by sum; every denominator starts at 0.001."""
    sums = {
        (prefix, name): 0.001 if name.endswith("num") else 0
        for prefix in ("", *TYPES.values())
        for name in ("correct_num", "correct_score", "no_num", "no_score", "ans_no_num", "ans_no_score")
    }
    for kind, truth, response in rows:
        names = ["correct_num"]
        if truth == "yes":
            names += ["correct_score"] if response == "Yes" else []
        else:
            names += ["no_num"]
            names += ["correct_score", "no_score"] if response == "No" else []
        if response == "No":
            names += ["ans_no_num"] + (["ans_no_score"] if truth == "no" else [])
        for name in names:
            sums["", name] += 1
            sums[TYPES[kind], name] += 1
    printed = {}
    for split, prefixes in PREFIXES.items():

        def percent(part: str, whole: str, prefixes: list[str] = prefixes) -> float:
            return round(sum(sums[p, part] for p in prefixes) / sum(sums[p, whole] for p in prefixes) * 100, 1)

        more = 0.001 if split == "existence" else 0.0001
        precision, recall = percent("ans_no_score", "ans_no_num"), percent("no_score", "no_num")
        f1 = round(2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + more) * 100, 1)
        figures = percent("correct_score", "correct_num"), precision, recall, f1
        printed[split] = dict(zip(("Accuracy", "Precision", "Recall", "F1"), map(str, figures), strict=True))
    return printed


def questions_and_answers(rows: list[tuple[str, str, str]]) -> tuple[list[Question], list[Answer]]:
    """Generate questions and answers of these types, truths and responses."""
    fields = [{"dimension": amber._DIMENSION_OF_TYPE[kind]} for kind, _, _ in rows]
    questions = [
        Question(str(number), "a.jpg", "Is it?", truth, "a.jpg", fields[number])
        for number, (_, truth, _) in enumerate(rows)
    ]
    return questions, [Answer(str(number), response) for number, (_, _, response) in enumerate(rows)]


@given(st.lists(_row, min_size=1))
def test_printed_figures_equal_those_of_the_official_script(rows: list[tuple[str, str, str]]) -> None:
    questions, answers = questions_and_answers(rows)
    expected = slow_script(rows)
    for split in amber.answered_splits(questions, answers):
        score = amber.score(questions, answers[::-1], split=split)
        assert score.printed == expected[split]
        known = {name: float(score.printed[key]) for name, key in zip(score.metrics, score.printed, strict=True)}
        assert {name: value for name, value in score.metrics.items() if value is not None} == {
            name: known[name] for name, value in score.metrics.items() if value is not None
        }
        assert sum(score.counts[name] for name in ("tp", "fp", "tn", "fn", "other")) == score.n == len(score.items)


@settings(max_examples=25, deadline=None)
@given(st.lists(_row, min_size=1, max_size=5))
def test_metrics_of_items_equal_the_score_up_to_rounding(rows: list[tuple[str, str, str]]) -> None:
    # Five hundred copies of each row make 0.001 in a denominator negligible.
    questions, answers = questions_and_answers([row for row in rows for _ in range(500)])
    split = amber.answered_splits(questions, answers)[0]
    score = amber.score(questions, answers, split=split)
    for name, metric in metrics_of(score.items).items():
        numerator, denominator = metric.sums(score.items)
        value = score.metrics[name]
        if value is None:
            assert denominator == 0 or name == "f1"
        else:
            assert numerator / denominator == pytest.approx(value, abs=0.2)
    assert score_from_dict(json.loads(json.dumps(score_as_dict(score)))) == score


@pytest.mark.parametrize(
    ("text", "official", "normalised"),
    [
        ("Yes", "yes", "yes"),
        ("No", "no", "no"),
        ("yes", None, "yes"),
        ("NO", None, "no"),
        ("No.", None, "no"),
        ("Yes\n", None, "yes"),
        (" Yes", None, "yes"),
        ("Yes, it is not.", None, "yes"),
        ('"No"', None, "no"),
        ("**Yes**", None, "yes"),
        ("Not at all", None, None),
        ("Nope", None, None),
        ("The answer is no", None, None),
        ("", None, None),
    ],
)
def test_answers_are_parsed_by_the_official_and_the_normalised_rule(
    text: str, official: str | None, normalised: str | None
) -> None:
    assert amber.parse(text) == official
    assert amber.parse_normalised(text) == normalised


def score_of(*rows: tuple[str, str, str], **options: Any) -> Score:
    return amber.score(*questions_and_answers(list(rows)), **options)


def test_existence_has_its_own_f1() -> None:
    pairs = [("no", "No"), ("no", "Yes"), ("yes", "No"), ("yes", "No")]
    for kind, f1 in (("discriminative-hallucination", "39.9"), ("relation", "40.0")):
        printed = score_of(*[(kind, *pair) for pair in pairs]).printed
        assert printed == {"Accuracy": "25.0", "Precision": "33.3", "Recall": "50.0", "F1": f1}


def test_without_no_answers_precision_is_printed_as_zero_and_null() -> None:
    score = score_of(("relation", "no", "Yes"), ("relation", "no", "maybe"))
    assert score.printed == {"Accuracy": "0.0", "Precision": "0.0", "Recall": "0.0", "F1": "0.0"}
    assert score.metrics == {"accuracy": 0.0, "precision": None, "recall": 0.0, "f1": None}
    assert any("precision, f1 cannot be calculated" in warning for warning in score.warnings)
    assert any("1 of 2 answers are neither yes nor no" in warning for warning in score.warnings)


def test_normalised_answers_are_labelled() -> None:
    score = score_of(("relation", "no", "No, it is not."), rule="normalised")
    assert (score.rule, score.metrics["accuracy"]) == ("normalised", 99.9)
    assert "answers were normalised: not comparable with published figures" in score.warnings
    assert score_of(("relation", "no", "No, it is not.")).metrics["accuracy"] == 0.0


def test_splits_and_parsers_are_checked() -> None:
    rows = [("relation", "no", "No"), ("discriminative-attribute-state", "no", "No")]
    assert amber.answered_splits(*questions_and_answers(rows)) == ("state", "relation")
    with pytest.raises(UsageError, match="no split is given"):
        score_of(*rows)
    with pytest.raises(UsageError, match="there is no split 'attributes'"):
        score_of(*rows, split="attributes")
    with pytest.raises(UsageError, match="there is no parser 'vcd'"):
        score_of(*rows, split="state", rule="vcd")
    questions, answers = questions_and_answers(rows)
    with pytest.raises(QkeditError, match="1 of 1 questions have no answer"):
        amber.score(questions, answers[:1], split="state")
    with pytest.raises(QkeditError, match="no question has the id '9'"):
        amber.score(questions, [*answers, Answer("9", "No")], split="state")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return AMBER's files in the layout of its repository, with three questions."""
    directory = tmp_path / "AMBER"
    (directory / "data" / "query").mkdir(parents=True)
    files: dict[str, Any] = {
        "annotations.json": [
            {"id": 1, "type": "generative", "truth": ["dog", "sky"], "hallu": ["cat"]},
            {"id": 2, "type": "discriminative-attribute-number", "truth": "yes"},
            {"id": 3, "type": "relation", "truth": "no"},
        ],
        "relation.json": {"dog": ["puppy"], "sky": [], "cat": ["kitten"]},
        "query/query_all.json": [
            {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
            {"id": 2, "image": "AMBER_1.jpg", "query": "Is there one dog in this image?"},
            {"id": 3, "image": "AMBER_2.jpg", "query": "Does it touch?"},
        ],
    }
    for name, content in files.items():
        (directory / "data" / name).write_text(json.dumps(content, indent=1))
    (directory / "data" / "safe_words.txt").write_text("light\n")
    return directory


def test_questions_are_read_from_the_published_layout(data: Path) -> None:
    description, number, relation = amber.load_questions(data)
    assert (description.truth, description.fields["likely"]) == (("dog", "sky"), ("cat",))
    assert description.fields["words"].vocabulary == {"dog", "puppy", "sky", "cat", "kitten"}
    assert "light" in description.fields["words"].safe
    assert (number.id, number.truth, number.image, number.prompt, number.group) == (
        *("2", "yes", "AMBER_1.jpg", "Is there one dog in this image?", "AMBER_1.jpg"),
    )
    assert amber.load_questions(data, "attribute") == (number,)
    assert amber.load_questions(data / "data" / "annotations.json", "relation") == (relation,)
    with pytest.raises(UsageError, match="there is no split 'number_'"):
        amber.load_questions(data, "number_")


@pytest.mark.parametrize(
    ("name", "place", "key", "value", "what"),
    [
        ("annotations", 0, "type", "descriptive", "line 2: the type 'descriptive' is not one of AMBER's"),
        ("annotations", 0, "truth", "dog", "line 2: truth is not a list of objects"),
        ("annotations", 0, "hallu", ["cow"], "line 2: the object 'cow' is not in relation.json"),
        ("annotations", 0, "hallu", [{"cow": 1}], "line 2: the object {'cow': 1} is not in relation.json"),
        ("annotations", 0, "truth", [["sky"]], r"line 2: the object \['sky'\] is not in relation.json"),
        ("annotations", 1, "id", 1, "the id '1' occurs twice"),
        ("annotations", 1, "id", 9, "the id '9' is not in query_all.json"),
        ("annotations", 2, "truth", "maybe", "the truth 'maybe' is neither 'yes' nor 'no'"),
        ("query/query_all", 1, "image", 3, "image is not text"),
        ("relation", "dog", None, "puppy", "an object's associations are not a list of words"),
    ],
)
def test_broken_files_are_refused(data: Path, name: str, place: Any, key: str | None, value: Any, what: str) -> None:
    file = data / "data" / f"{name}.json"
    content = json.loads(file.read_text())
    if key is None:
        content[place] = value
    else:
        content[place][key] = value
    file.write_text(json.dumps(content, indent=1))
    with pytest.raises(QkeditError, match=what):
        amber.load_questions(data)


@pytest.mark.parametrize("name", ["annotations.json", "relation.json", "safe_words.txt", "query/query_all.json"])
def test_a_missing_file_is_named_with_its_source(data: Path, name: str) -> None:
    (data / "data" / name).unlink()
    with pytest.raises(QkeditError, match=rf"there is no {Path(name).name}; take it from github.com/junyangwang0410"):
        amber.load_questions(data)


def test_answers_are_read_in_the_official_and_the_common_format(tmp_path: Path) -> None:
    for text in (
        '[{"id": 2, "response": "Yes"}, {"id": 3, "response": "No "}]',
        '{"id": "2", "answer": "Yes"}\n{"id": 3, "answer": "No "}\n',
    ):
        file = tmp_path / "answers.json"
        file.write_text(text)
        assert [(answer.id, answer.text) for answer in amber.load_answers(file)] == [("2", "Yes"), ("3", "No ")]


def test_the_command_line_scores_each_answered_dimension(data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text('[{"id": 2, "response": "Yes, one."}, {"id": 3, "response": "No"}]')
    arguments = ("score", "amber", "--answers", answers, "--data", data)
    results = qkedit(*arguments, "--json").document["results"]
    assert [(result["split"], result["parser"], result["printed"]["Accuracy"]) for result in results] == [
        ("number", "official", "0.0"),
        ("relation", "official", "99.9"),
    ]
    assert results[1]["metrics"] == {"accuracy": 99.9, "precision": 99.9, "recall": 99.9, "f1": 99.9}
    (result,) = qkedit(*arguments, "--normalise", "--split", "number", "--json").document["results"]
    assert (result["parser"], result["printed"]["Accuracy"]) == ("normalised", "99.9")
    assert "99.90" in qkedit(*arguments, "--normalise").stdout
    assert "another parser" in qkedit(*arguments, "--normalise", "--parser", "official").sentence()
    assert (
        "AMBER does not use it"
        in qkedit(*arguments, "--cache-ground-truth", tmp_path / "x_gt_objects.json").sentence()
    )


@needs_data
def test_all_published_questions_are_read() -> None:
    questions = amber.load_questions(DATA)
    count = dict.fromkeys(amber.SPLITS, 0)
    for question in questions:
        for split in amber.SPLITS:
            count[split] += question.fields["dimension"] in amber.dimensions_of(split)
    assert count == {
        **{"generative": 1004, "discriminative": 14216, "attribute": 7628, "existence": 4924},
        **{"state": 4764, "number": 2072, "action": 792, "relation": 1664},
    }
    assert len(questions[0].fields["words"].vocabulary) == 418
    assert len(questions[0].fields["words"].safe - {""}) == 9
