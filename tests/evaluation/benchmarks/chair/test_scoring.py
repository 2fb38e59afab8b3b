"""Test CHAIR against a slow copy of the official script, and its published output to the last digit."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.chair import scoring as chair
from qkedit.evaluation.benchmarks.chair.ground_truth import (
    ImageTruth,
    build_truth,
    find_sources,
    read_truth,
    save_truth,
)
from qkedit.evaluation.benchmarks.chair.words import Reading, synonyms_in
from qkedit.evaluation.files.records import Answer, Question
from qkedit.evaluation.statistics.metrics import metrics_of
from tests.cli.command import qkedit
from tests.evaluation.published import DATA, needs_data

SYNONYMS = "person, man, people\ndog, puppy\ncup\ndining table, table\n"
OBJECTS = ("person", "dog", "cup", "dining table")
EXAMPLE = DATA / "examples" / "chair_llava15_500.json.gz"


def read_words(caption: str) -> Reading:
    """Read captions without a library: only words that are objects themselves."""
    return Reading(tuple(word for word in caption.split() if word in OBJECTS))


def slow_script(captions: list[tuple[list[str], set[str]]]) -> dict[str, float | None]:
    """Follow the official script: mentions and truth of each caption → its three figures."""
    num_caps = hallucinated_caps = hallucinated_words = all_words = recalled = true_objects = 0
    for mentions, truth in captions:
        all_words += len(mentions)
        hallucinated = False
        recalled_here = set()
        for mention in mentions:
            if mention not in truth:
                hallucinated_words += 1
                hallucinated = True
            else:
                recalled_here.add(mention)
        num_caps += 1
        hallucinated_caps += hallucinated
        true_objects += len(truth)
        recalled += len(recalled_here)
    return {
        "chair_s": hallucinated_caps / num_caps,
        "chair_i": hallucinated_words / all_words if all_words else None,
        "recall": recalled / true_objects if true_objects else None,
    }


@given(st.lists(st.tuples(st.lists(st.sampled_from(OBJECTS[:3])), st.sets(st.sampled_from(OBJECTS))), min_size=1))
def test_metrics_equal_those_of_the_official_script(captions: list[tuple[list[str], set[str]]]) -> None:
    questions = [
        Question(str(number), "", "", tuple(name for name in OBJECTS if name in truth))
        for number, (_, truth) in enumerate(captions)
    ]
    answers = [Answer(str(number), " a ".join(said)) for number, (said, _) in enumerate(captions)]
    score = chair.score(questions, answers[::-1], rule="own words", read=read_words)
    expected = slow_script(captions)
    assert {name: score.metrics[name] for name in expected} == expected
    assert [name for name, value in expected.items() if value is None] == [
        name for name in expected if any(name in warning for warning in score.warnings)
    ]
    assert score.metrics["mean_words"] == sum(len(answer.text.split()) for answer in answers) / len(answers)
    assert [item.id for item in score.items] == [question.id for question in questions]
    # A comparison of runs computes the same metrics from the items.
    for name, metric in metrics_of(score.items).items():
        numerator, denominator = metric.sums(score.items)
        assert score.metrics[name] == (numerator / denominator if denominator else None)


def test_an_item_lists_found_and_hallucinated_objects() -> None:
    question = Question("7", "7.jpg", "", ("person", "cup"), group="7")
    score = chair.score([question], [Answer("7", "dog cup dog cup .")], rule="own words", read=read_words)
    (item,) = score.items
    assert (item.found, item.hallucinated, item.covered) == (("dog", "cup", "dog", "cup"), ("dog", "dog"), ("cup",))
    assert (item.truth, item.words, item.group) == (("person", "cup"), 5, "7")
    assert score.counts == {
        "captions": 1,
        "hallucinated_captions": 1,
        "mentions": 4,
        "hallucinated_mentions": 2,
        "true_objects": 2,
        "covered_objects": 1,
        "words": 5,
    }
    assert score.printed == {"CHAIRs": "100.0", "CHAIRi": "50.0", "Recall": "50.0"}
    assert (score.rule_kind, score.rule, score.split) == ("variant", "own words", None)


def test_scoring_with_a_custom_reader_needs_no_language_library(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    questions = chair.load_questions(data)
    score = chair.score(questions, [Answer("5", "a cup")], read=read_words)
    assert score.metrics["chair_i"] == 1.0
    with pytest.raises(QkeditError, match="nltk is not installed"):
        chair.score(questions, [Answer("5", "a cup")])


def test_answers_choose_the_images_unless_a_split_is_named(data: Path) -> None:
    questions = chair.load_questions(data, "mine")
    answers = [Answer("5", "dog")]
    assert chair.score(questions, answers, read=read_words).n == 1
    with pytest.raises(QkeditError, match="1 of 2 questions have no answer, the first is '12'"):
        chair.score(questions, answers, split="mine", read=read_words)
    score = chair.score(questions, answers, split="mine", read=read_words, allow_missing=True)
    assert score.counts["missing"] == 1
    with pytest.raises(QkeditError, match="no question has the id '6'"):
        chair.score(questions, [*answers, Answer("6", "dog")], read=read_words)
    with pytest.raises(QkeditError, match="answered twice"):
        chair.score(questions, answers * 2, read=read_words)


def test_questions_without_a_table_of_synonyms_are_refused() -> None:
    with pytest.raises(UsageError, match="the questions have no table of synonyms"):
        chair.score([Question("1", "", "", ())], [Answer("1", "")])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a directory with a table of synonyms and the ground truth of two images."""
    directory = tmp_path / "data"
    (directory / "chair").mkdir(parents=True)
    (directory / "chair" / "synonyms.txt").write_text(SYNONYMS)
    (directory / "chair" / "mine_gt_objects.json").write_text('{"12": ["cup", "person"], "5": ["dog"]}')
    return directory


def test_each_image_with_ground_truth_is_a_question(data: Path) -> None:
    first, second = chair.load_questions(data)
    assert (first.id, first.image, first.truth) == ("5", "COCO_val2014_000000000005.jpg", ("dog",))
    assert (second.id, second.truth, second.group) == ("12", ("person", "cup"), "12")
    assert first.prompt == "Please describe this image in detail."
    # A single file of ground truth with the table in its directory works too.
    from_file = chair.load_questions(data / "chair" / "mine_gt_objects.json")
    assert [(question.id, question.truth) for question in from_file] == [("5", ("dog",)), ("12", ("person", "cup"))]
    assert from_file[0].fields["data"] == data / "chair"


def test_files_of_truth_are_splits_and_must_agree(data: Path) -> None:
    packed = {"categories": list(OBJECTS), "images": {"5": [1], "13": [0, 0, 3]}}
    (data / "more_gt_objects.json.gz").write_bytes(gzip.compress(json.dumps(packed).encode()))
    assert {source.split for source in find_sources(data)} == {"mine", "more"}
    assert [question.id for question in chair.load_questions(data, "more")] == ["5", "13"]
    assert [question.truth for question in chair.load_questions(data)] == [
        ("dog",),
        ("person", "cup"),
        ("person", "dining table"),
    ]
    with pytest.raises(UsageError, match="there is no split 'val'; choose one of more, mine"):
        chair.load_questions(data, "val")
    (data / "more_gt_objects.json").write_text('{"5": ["cup"]}')
    with pytest.raises(QkeditError, match="another file disagrees about the image '5'"):
        chair.load_questions(data)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"5": ["unicorn"]}', "names an object that is not in the synonyms: 'unicorn'"),
        ('{"5": 3}', "is not a file of the objects in images"),
        ('{"5": [["dog"]]}', "is not a file of the objects in images"),
        ('{"categories": ["dog"], "images": {"5": [1]}}', "is not a file of the objects in images"),
        ('{"categories": ["dog"]}', "is not a file of the objects in images"),
        ('{"5": ["dog"]', "line 1: is not valid JSON"),
        ('["dog"]', "is not a JSON object"),
    ],
)
def test_broken_ground_truth_is_refused(data: Path, content: str, what: str) -> None:
    file = data / "chair" / "mine_gt_objects.json"
    file.write_text(content)
    with pytest.raises(QkeditError, match=what) as raised:
        chair.load_questions(data)
    assert raised.value.where.startswith(str(file))


def test_missing_files_are_named_with_their_source(data: Path, tmp_path: Path) -> None:
    with pytest.raises(QkeditError, match=r"there is no synonyms.txt; take it from github.com/LisaAnne/Hallucination"):
        chair.load_questions(tmp_path)
    (data / "chair" / "mine_gt_objects.json").unlink()
    with pytest.raises(QkeditError, match=r"has no ground truth for CHAIR; put COCO's instances_val2014.json"):
        chair.load_questions(data)


class _Trap:
    """An object that records if it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise AssertionError('a pickle was loaded')",)


def test_pickles_are_never_loaded(data: Path) -> None:
    import pickle

    (data / "chair" / "mine_gt_objects.json").unlink()
    trap = data / "chair" / "chair.pkl"
    trap.write_bytes(pickle.dumps(_Trap()))
    for given_data in (data, trap):
        with pytest.raises(QkeditError, match=r"chair.pkl: is a pickle, which can run any code .* never read"):
            chair.load_questions(given_data)


def annotations() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return COCO's two files for three images, one of them without annotations."""
    images = [{"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg"} for number in (3, 4, 9)]
    instances = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}, {"id": 7, "name": "table"}],
        "annotations": [
            {"image_id": 3, "category_id": 7, "segmentation": [[1.0, 2.0]], "id": 1},
            {"image_id": 3, "category_id": 7, "segmentation": {"counts": [1]}, "id": 2},
            {"image_id": 4, "category_id": 1, "segmentation": [], "id": 3},
        ],
    }
    captions = {
        "images": images,
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "cup person cup"},
            {"image_id": 4, "id": 2, "caption": "dog"},
            {"image_id": 4, "id": 3, "caption": "nothing"},
        ],
    }
    return instances, captions


def test_ground_truth_is_built_from_instances_and_reference_captions() -> None:
    truth = build_truth(*annotations(), synonyms_in(SYNONYMS), read_words)
    assert truth == {
        "3": ImageTruth("COCO_train2014_000000000003.jpg", ("person", "cup", "dining table")),
        "4": ImageTruth("COCO_train2014_000000000004.jpg", ("dog",)),
        "9": ImageTruth("COCO_train2014_000000000009.jpg", ()),
    }


@pytest.mark.parametrize("variant", ["official", "wordnet"])
def test_ground_truth_is_built_if_only_annotations_exist(language: Path, data: Path, variant: str) -> None:
    (data / "chair" / "mine_gt_objects.json").unlink()
    instances, captions = annotations()
    captions["annotations"].append({"image_id": 9, "id": 4, "caption": "Two puppies, a man."})
    (data / "annotations").mkdir()
    (data / "annotations" / "instances_train2014.json").write_text(json.dumps(instances))
    (data / "annotations" / "instances_val2014.json").write_text("a file without its captions")
    (data / "annotations" / "captions_train2014.json").write_text(json.dumps(captions))
    if language != data:
        (data / "nlp").symlink_to(language / "nlp")
    kept = data.parent / "kept_gt_objects.json.gz"
    before = sorted(data.rglob("*"))
    questions = chair.load_questions(data, "train2014", variant=variant, cache_ground_truth=kept)
    assert [question.truth for question in questions] == [
        ("person", "cup", "dining table"),
        ("dog",),
        ("person", "dog"),
    ]
    assert questions[0].image == "COCO_train2014_000000000003.jpg"
    assert sorted(data.rglob("*")) == before
    assert [shown.objects for shown in read_truth(kept, synonyms_in(SYNONYMS)).values()] == [
        question.truth for question in questions
    ]


def test_broken_annotations_are_named(data: Path) -> None:
    (data / "chair" / "mine_gt_objects.json").unlink()
    instances, captions = annotations()
    files = {"instances": data / "instances_val2014.json", "captions": data / "captions_val2014.json"}

    def refused(what: str, where: str) -> None:
        files["instances"].write_text(json.dumps(instances))
        files["captions"].write_text(json.dumps(captions))
        with pytest.raises(QkeditError, match=what) as raised:
            chair.load_questions(data)
        assert raised.value.where == str(files[where])

    instances["categories"][0]["name"] = "unicorn"
    refused("the synonyms lack the category 'unicorn'", "instances")
    instances["categories"][0]["name"] = "dog"
    instances["annotations"][0]["category_id"] = 99
    refused("is not a COCO annotation file of instances", "instances")
    instances["annotations"] = []
    captions["annotations"] = [{"image_id": 3}]
    refused("is not a COCO annotation file of captions", "captions")


@settings(max_examples=30)
@given(st.dictionaries(st.integers(0, 999).map(str), st.sets(st.sampled_from(OBJECTS))), st.booleans())
def test_cached_ground_truth_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, shown: dict[str, set[str]], packed: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / ("a_gt_objects.json" + ".gz" * packed)
    truth = {
        image: ImageTruth(f"COCO_val2014_{int(image):012d}.jpg", tuple(name for name in OBJECTS if name in objects))
        for image, objects in shown.items()
    }
    save_truth(truth, file)
    assert read_truth(file, synonyms_in(SYNONYMS)) == truth


def test_ground_truth_is_saved_only_with_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in _gt_objects\.json"):
        save_truth({}, tmp_path / "truth.json")
    with pytest.raises(QkeditError, match="cannot write the file"):
        save_truth({}, tmp_path / "absent" / "a_gt_objects.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"image_id": 5, "caption": "a dog"}\n{"image_id": "12", "caption": "b"}\n',
        '[{"image_id": "COCO_val2014_000000000005.jpg", "caption": "a dog"}, {"image_id": "0012", "caption": "b"}]',
        '{"id": "5", "answer": "a dog"}\r\n{"id": 12, "answer": "b"}\r\n',
        '{"note": "[", "captions": [{"image_id": 5, "caption": "a dog"}, {"id": 12, "answer": "b"}], "n": 2}',
        '{"all": {"captions": 3},\n "sentences": [{"image_id": 5, "caption": "a dog"},\n{"id": 12, "caption": "b"}]}',
        '{"image_id": 5, "caption": "a dog", "prompt": "another", "image": "x.jpg"}\n{"image_id": 12, "caption": "b"}',
    ],
)
def test_answers_are_read_in_every_format(data: Path, text: str) -> None:
    file = data / "answers.json"
    file.write_text(text, newline="")
    answers = chair.load_answers(file)
    assert [(answer.id, answer.text) for answer in answers] == [("5", "a dog"), ("12", "b")]
    assert chair.score(chair.load_questions(data), answers, split="mine", read=read_words).n == 2
    packed = data / "answers.json.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert [answer.text for answer in chair.load_answers(packed)] == ["a dog", "b"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"captions": [\n{"image_id": 5},\n{"image_id": 5}]}', "line 2: has no 'answer' or 'caption'"),
        (b'{"captions":\n\n[{"caption": "a"}]}', "line 3: has no 'image_id' or 'id'"),
        (b'{"captions": [3]}', "line 1: is not a JSON object"),
        (b'{"captions": []}', "is empty"),
        (b'{"captions": [\n{"image_id": 5, "caption": "a"}\n', "line 3: is not valid JSON"),
        (b'{"other": [{"image_id": 5, "caption": "a"}]}', "has no 'image_id' or 'id'"),
    ],
)
def test_broken_answers_are_refused_with_their_line(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "answers.json"
    file.write_bytes(content)
    with pytest.raises(QkeditError, match=what):
        chair.load_answers(file)


def test_a_broken_gzip_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.json.gz"
    for content in (b"{}", gzip.compress(b"{}" * 99)[:-9]):
        file.write_bytes(content)
        with pytest.raises(QkeditError, match="is not a valid gzip file"):
            chair.load_answers(file)


@needs_data
@pytest.mark.parametrize(("variant", "name"), [("official", "official_pattern"), ("wordnet", "opera_wordnet")])
def test_the_published_example_has_the_official_figures(language: Path, variant: str, name: str) -> None:
    expected = json.loads(gzip.decompress(EXAMPLE.read_bytes()))["expected"][name]
    questions, answers = chair.load_questions(DATA), chair.load_answers(EXAMPLE)
    score = chair.score(questions, answers, rule=variant)
    assert len(questions) == 123_287
    overall = expected["overall"]
    assert score.metrics["chair_s"] == overall["CHAIRs"]
    assert score.metrics["chair_i"] == overall["CHAIRi"]
    assert score.metrics["recall"] == overall["Recall"]
    assert score.printed == {key: f"{value * 100:.1f}" for key, value in overall.items()}
    items = {item.id: item for item in score.items}
    for sentence in expected["sentences"]:
        item = items.pop(str(sentence["image_id"]))
        assert list(item.found) == sentence["generated"]
        assert list(item.hallucinated) == [node for _, node in sentence["hallucinated"]]
        assert set(item.truth) == set(sentence["gt"])
        assert len(item.covered) == round(sentence["Recall"] * len(item.truth))
    assert items == {}


@needs_data
def test_the_command_line_scores_the_published_example(language: Path) -> None:
    arguments = ("score", "chair", "--answers", EXAMPLE, "--data", DATA)
    result = qkedit(*arguments, "--json")
    assert result.code == 0, result.stderr
    (scored,) = result.document["results"]
    assert (scored["benchmark"], scored["split"], scored["variant"], scored["n"]) == ("chair", None, "official", 500)
    assert scored["printed"] == {"CHAIRs": "45.0", "CHAIRi": "12.8", "Recall": "79.8"}
    assert scored["counts"]["mentions"] == 3739
    assert scored["counts"]["hallucinated_mentions"] == 478
    assert qkedit(*arguments, "--split", "coco_val500").sentence().startswith(f"{EXAMPLE}, line ")
