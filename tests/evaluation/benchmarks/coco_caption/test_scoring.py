"""Test the benchmark: pycocoevalcap's figures, accepted and refused files, and comparisons of two runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.coco_caption import scoring
from qkedit.evaluation.benchmarks.coco_caption.spice import CORENLP
from qkedit.evaluation.benchmarks.registry import benchmark_named
from qkedit.evaluation.files.records import Answer, MeasuredItem, Question, Score
from qkedit.evaluation.files.score_json import score_as_dict, score_from_dict
from qkedit.evaluation.runs.scoring import score_files
from qkedit.evaluation.statistics.intervals import interval, paired
from tests.evaluation.benchmarks.coco_caption.conftest import Programs

# Made by `scripts/check_caption_scores.py --images 16 --seed 7 --write`: captions, and their scores by pycocoevalcap
# 1.2 with Java 17.
OFFICIAL = Path(__file__).with_name("official_captions.json")
REFERENCES = {
    "1": ("A man rides a horse.", "the man is riding a brown horse"),
    "2": ("A cat on a mat",),
    "3": ("Two dogs play.", "dogs are playing with a ball"),
}


def questions(references: dict[str, tuple[str, ...]] = REFERENCES) -> list[Question]:
    return [Question(image, f"{image}.jpg", "", texts, group=image) for image, texts in references.items()]


def answers_with(*captions: str) -> list[Answer]:
    return [Answer(image, text) for image, text in zip(REFERENCES, captions, strict=False)]


def by_words(*captions: str, split: str | None = None) -> Score:
    return scoring.score(questions(), answers_with(*captions), split=split, rule="words")


def annotations(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": int(image), "file_name": f"{image}.jpg"} for image in reversed(REFERENCES)],
        "annotations": [
            {"id": number, "image_id": int(image), "caption": text}
            for number, (image, texts) in enumerate(REFERENCES.items())
            for text in texts
        ],
    } | changes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(annotations()))
    return tmp_path


def test_scores_equal_those_of_pycocoevalcap(programs: Programs) -> None:
    made, official = (json.loads(OFFICIAL.read_bytes())[key] for key in ("made", "official"))
    raw = [*(text for texts in made["references"].values() for text in texts), *made["captions"].values()]
    cut = [*(text for texts in official["references"].values() for text in texts), *official["captions"].values()]
    known = {" ".join(text.splitlines()): tokens for text, tokens in zip(raw, cut, strict=True)}
    aligned = "".join(" ".join(map(str, row)) + "\n" for row in official["meteor_alignments"])
    programs(
        f"known = {known!r}; print('\\n'.join(known[line] for line in given.split('\\n')), end='')",
        meteor=f"print({aligned!r}, end='')",
    )
    benchmark = benchmark_named("coco-caption").with_metrics(["meteor"])
    shown = questions({image: tuple(texts) for image, texts in made["references"].items()})
    score = benchmark.score(shown, [Answer(*caption) for caption in made["captions"].items()])
    assert len(official["figures"]) == 7
    for name, figures in official["figures"].items():
        metric = next(metric for metric in scoring.METRICS if metric.name == name)
        each = [metric.value_of([item]) for item in score.items]
        np.testing.assert_allclose(each, figures["each"], rtol=0, atol=1e-12, err_msg=name)
        assert score.metrics[name] == pytest.approx(figures["all"], abs=1e-12)
        assert score.printed[scoring._PRINTED[name]] == f"{figures['all']:.3f}"


def test_spice_receives_the_captions(programs: Programs, tmp_path: Path) -> None:
    package = tmp_path / "site" / "pycocoevalcap"
    before = sorted(package.rglob("*"))
    answer = (
        "rows = json.loads(Path(next(a for a in arguments if a.endswith('captions.json'))).read_text()); "
        "scores = [{'image_id': r['image_id'], 'scores': {'All': {'f': len(r['refs']) / 10}}} for r in rows[::-1]]; "
        "Path(arguments[arguments.index('-out') + 1]).write_text(json.dumps(scores))"
    )
    log = programs(spice=answer)
    for name in CORENLP:
        (tmp_path / "spice").mkdir(exist_ok=True)
        (tmp_path / "spice" / name).touch()
    shown = [replace(question, fields={"data": tmp_path}) for question in questions()]
    score = scoring.score(shown, answers_with("a man", "a cat", "dogs"), also=["spice"])
    assert [item.sums["spice"] for item in score.items] == [(0.2, 1.0), (0.1, 1.0), (0.2, 1.0)]
    assert score.metrics["spice"] == pytest.approx(0.5 / 3)
    asked, _ = json.loads(log.read_text().splitlines()[-1])
    assert not any(argument.startswith(str(package)) and argument.endswith(".json") for argument in asked)
    assert sorted(package.rglob("*")) == before, "nothing is written into the library"


@pytest.mark.parametrize("place", ["", "spice", "stanford-corenlp-full-2015-12-09", "site/pycocoevalcap/spice/lib"])
def test_the_models_of_spice_are_found_together(programs: Programs, tmp_path: Path, place: str) -> None:
    """The last place is that to which pycocoevalcap itself downloads them."""
    log = programs()
    shown = [replace(question, fields={"data": tmp_path}) for question in questions()]
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, sentence in zip(CORENLP, ("put them there", "did not print"), strict=True):
        (tmp_path / place / name).touch()
        with pytest.raises(QkeditError, match=sentence):
            scoring.score(shown, answers_with("a"), also=["spice"])
    asked, _ = json.loads(log.read_text().splitlines()[-1])
    assert {str(tmp_path / place / name) for name in CORENLP} <= set(asked[asked.index("-cp") + 1].split(os.pathsep))


def test_spice_without_its_models_names_their_source(programs: Programs, tmp_path: Path) -> None:
    programs()
    shown = [replace(question, fields={"data": tmp_path}) for question in questions()]
    with pytest.raises(QkeditError, match=r"put them there, from nlp\.stanford\.edu"):
        scoring.score(shown, answers_with("a"), also=["spice"])


@pytest.mark.parametrize(
    ("version", "refused"), [('java version "1.8.0_402"', False), ('openjdk version "17.0.15" 2025-04-15', True)]
)
def test_spice_is_refused_for_a_java_without_javascript(
    programs: Programs, tmp_path: Path, version: str, refused: bool
) -> None:
    programs(version=version)
    for name in CORENLP:
        (tmp_path / name).touch()
    shown = [replace(question, fields={"data": tmp_path}) for question in questions()]
    with pytest.raises(QkeditError) as error:
        scoring.score(shown, answers_with("a"), also=["spice"])
    assert ("needs Java 8 to 14, and java on PATH is 17" in str(error.value)) == refused
    assert ("did not print one number for each of 1 captions" in str(error.value)) != refused


@pytest.mark.parametrize("printed", ["", "1.0 2.0", "Error", "nan " * 22])
def test_unexpected_output_of_meteor_is_refused(programs: Programs, printed: str) -> None:
    programs(meteor=f"print({printed!r})")
    with pytest.raises(QkeditError, match="did not print, for 1 captions"):
        scoring.score(questions(), answers_with("a"), also=["meteor"])


def test_an_unknown_additional_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'meteor'"):
        benchmark_named("coco-caption").with_metrics(["meteors"])
    with pytest.raises(UsageError, match="POPE has no further metric"):
        benchmark_named("pope").with_metrics(["meteor"])
    assert benchmark_named("coco-caption").also == (), "a request does not change the metrics of others"


def test_the_variant_words_warns_about_comparisons() -> None:
    score = by_words("a man rides", "a cat", "dogs")
    assert score.rule == "words"
    assert all(name.endswith(" (words, not PTB tokens)") for name in score.printed)
    assert score.warnings == ("the tokens are words, not PTB tokens: figures are not comparable with published ones",)
    assert list(score.metrics) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "mean_words"]


def test_cider_of_a_single_image_is_zero_with_a_warning() -> None:
    score = by_words("A man rides a horse")
    assert (score.n, score.metrics["cider"]) == (1, 0)
    assert score.metrics["bleu_4"] == pytest.approx(1, abs=1e-8)
    assert any("CIDEr of a single image is always 0" in sentence for sentence in score.warnings)


def test_a_score_survives_json() -> None:
    score = by_words("a man rides", "a cat", "")
    assert score_from_dict(json.loads(json.dumps(score_as_dict(score)))) == score
    assert score.counts == {"captions": 3, "references": 5, "tokens": 5, "reference_tokens": 13, "empty": 1}


def test_every_metric_has_intervals_and_paired_tests() -> None:
    better = by_words("A man rides a horse.", "A cat on a mat", "Two dogs play.")
    worse = by_words("A man", "a cat on the mat", "Two dogs sleep.")
    for metric in scoring.metrics_of([item for item in better.items if isinstance(item, MeasuredItem)]):
        found = interval(better.items, metric, resamples=200)
        assert found.value == pytest.approx(better.metrics[metric.name])
        assert found.low is not None
        difference = paired(worse.items, better.items, metric, resamples=200)
        assert difference.value == pytest.approx(better.metrics[metric.name] - worse.metrics[metric.name])


def test_the_bootstrap_resamples_images_for_corpus_metrics() -> None:
    # In a resample, BLEU is computed from all drawn captions together, not as a mean over captions.
    items = by_words("A man rides", "A cat on a mat", "dogs play").items
    bleu_2 = next(metric for metric in scoring.METRICS if metric.name == "bleu_2")
    drawn = [items[0], items[1], items[1]]
    totals = np.sum([bleu_2.sums([item]) for item in drawn], axis=0)[None]
    again = scoring.score(
        questions({"1": REFERENCES["1"], "2": REFERENCES["2"], "2 again": REFERENCES["2"]}),
        [Answer("1", "A man rides"), Answer("2", "A cat on a mat"), Answer("2 again", "A cat on a mat")],
        rule="words",
    )
    assert bleu_2.value(totals)[0] == pytest.approx(again.metrics["bleu_2"])


def test_coco_files_are_read_and_answers_choose_the_images(data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    rows = [{"image_id": 3, "caption": "dogs"}, {"image_id": "COCO_val2014_000000000001.jpg", "caption": "a man"}]
    answers.write_text(json.dumps(rows))
    benchmark = benchmark_named("coco-caption")
    (score,) = score_files(benchmark, answers=answers, data=data, rule="words")
    assert [item.id for item in score.items] == ["3", "1"], "the order is the file's, as in the official script"
    with pytest.raises(QkeditError, match="1 of 3 questions have no answer, the first is '2'"):
        score_files(benchmark, answers=answers, data=data, rule="words", split="val2014")
    with pytest.raises(UsageError, match="choose one of val2014"):
        benchmark.load_questions(data, "test2014")
    with pytest.raises(QkeditError, match=r"captions_val2014\.json"):
        benchmark.load_questions(tmp_path / "annotations" / "nothing")


@pytest.mark.parametrize(
    "broken",
    [
        {"images": None},
        {"images": [{"id": 1}]},
        {"images": [{"id": True, "file_name": "a"}]},
        {"images": [{"id": 1, "file_name": 2}]},
        {"annotations": 7},
        {"annotations": [[]]},
        {"annotations": [{"image_id": 1, "caption": None}]},
        {"annotations": [{"image_id": {}, "caption": "a"}]},
        {"annotations": []},
    ],
)
def test_broken_annotations_are_refused_with_their_file(broken: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "captions_own.json"
    file.write_text(json.dumps(annotations(**broken)))
    with pytest.raises(QkeditError, match=r"captions_own\.json: (is not a COCO annotation file|has no caption)"):
        benchmark_named("coco-caption").load_questions(tmp_path)


def test_two_files_with_different_captions_are_refused(data: Path) -> None:
    (data / "annotations" / "captions_zzz.json").write_text(
        json.dumps(annotations(annotations=[{"image_id": 1, "caption": "something else"}]))
    )
    with pytest.raises(QkeditError, match="different captions for the image '1'"):
        benchmark_named("coco-caption").load_questions(data)
