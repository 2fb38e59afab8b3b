"""Test that a run asks each question once, also after interruptions, and scores the answers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.files.result_files import read_scores
from qkedit.evaluation.files.score_json import score_from_dict
from qkedit.evaluation.runs.evaluate import Finished, evaluate
from qkedit.evaluation.runs.tasks import Task
from tests.evaluation.runs.recording_model import Oracle, questions, task, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def run(oracle: Oracle, images: Path, *tasks: Task, out: str = "out", **options: object) -> Finished:
    return evaluate(oracle, tasks or (task(),), images, images.parent / out, **options)  # type: ignore[arg-type]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_all_answers_are_written_and_scored(images: Path) -> None:
    oracle = Oracle(answer=lambda request: "Yes." if request.id in ("0", "2", "3") else "No, it's \u2028not.\n")
    told: list[tuple[int, int]] = []
    finished = run(oracle, images, watch=lambda done, total: told.append((done, total)))
    assert [request.id for request in oracle.asked] == ["0", "1", "2", "3", "4", "5"]
    assert oracle.asked[3].image == images / "1.png"
    assert oracle.asked[3].prompt == questions()[3].prompt
    assert oracle.asked[3].max_new_tokens == 16
    assert told == [(done, 6) for done in range(7)]
    assert finished.asked == 6

    lines = (images.parent / "out" / "answers" / "pope.random.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[1] == {
        "id": "1",
        "image": "0.png",
        "question": questions()[1].prompt,
        "answer": "No, it's \u2028not.\n",
    }
    # By hand: yes is right for 0 and 2, wrong for 3; no is right for 1 and 5, wrong for 4.
    (score,) = finished.scores
    assert {name: score.counts[name] for name in ("tp", "fp", "tn", "fn")} == {"tp": 2, "fp": 1, "tn": 2, "fn": 1}

    assert finished.file == images.parent / "out" / "result.json"
    document = json.loads(finished.file.read_text("utf-8"))
    assert list(document) == ["schema", "command", "status", "warnings", "results", "run"]
    assert (document["schema"], document["command"], document["status"]) == (1, "eval", "done")
    assert score_from_dict(document["results"][0]) == score
    assert read_scores(images.parent / "out").scores == (score,)
    assert document["run"] == finished.run
    assert document["run"]["model"] == "oracle"
    assert document["run"]["weights_sha256"] == "a" * 64
    assert document["run"]["attention"] == "sdpa"
    assert document["run"]["decoding"] == {"method": "greedy", "max_new_tokens": {"pope.random": 16}}
    assert (document["run"]["limit"], document["run"]["prompt"], document["run"]["batch_size"]) == (None, None, 1)


def test_stored_answers_can_be_scored_without_the_run(images: Path) -> None:
    from qkedit.evaluation.benchmarks import pope

    finished = run(Oracle(), images)
    answers = pope.load_answers(images.parent / "out" / "answers" / "pope.random.jsonl")
    assert pope.score(questions(), answers, split="random") == finished.scores[0]


def test_an_interrupted_run_asks_the_remaining_questions(images: Path) -> None:
    tasks = (task(), task(4, "popular"))
    with pytest.raises(QkeditError, match="no more"):
        run(failing := Oracle(fails_at=7), images, *tasks)
    assert not (images.parent / "out" / "result.json").exists()
    told: list[tuple[int, int]] = []
    resumed = Oracle()
    finished = run(resumed, images, *tasks, watch=lambda done, total: told.append((done, total)))
    whole = Oracle()
    assert [(request.task, request.id) for request in failing.asked + resumed.asked] == [
        *(("pope.random", str(number)) for number in range(6)),
        *(("pope.popular", str(number)) for number in range(4)),
    ]
    assert told == [(7, 10), (8, 10), (9, 10), (10, 10)]
    assert finished.asked == 3
    expected = run(whole, images, *tasks, out="whole")
    assert finished.scores == expected.scores
    assert contents(images.parent / "out") == contents(images.parent / "whole")


def test_a_finished_run_is_scored_without_a_model(images: Path) -> None:
    first = run(Oracle(), images)
    first.file.unlink()
    again = run(oracle := Oracle(), images)
    assert (oracle.sessions, oracle.asked, again.asked) == (0, [], 0)
    assert again.scores == first.scores
    assert again.run == first.run
    assert again.file.exists()


@pytest.mark.parametrize("torn", [b"{", b'{"id": "3", "answer": "No', b'{"id": "3", "answer": "No."}', b"\xff"])
def test_the_question_of_a_partial_line_is_asked_again(images: Path, torn: bytes) -> None:
    """A line without a line end may be complete by chance; its question is still asked again."""
    with pytest.raises(QkeditError, match="no more"):
        run(Oracle(fails_at=3), images)
    file = images.parent / "out" / "answers" / "pope.random.jsonl"
    file.write_bytes(file.read_bytes() + torn)
    run(oracle := Oracle(), images)
    assert [request.id for request in oracle.asked] == ["3", "4", "5"]
    assert [json.loads(line)["id"] for line in file.read_bytes().splitlines()] == list("012345")


@pytest.mark.parametrize(
    "broken", [b"{\n", b'{"id": 3, "answer": "x"}\n', b"[]\n", b"\xff\n", b"\n", b'{"id": "3"}\n']
)
def test_a_broken_line_is_an_error(images: Path, broken: bytes) -> None:
    with pytest.raises(QkeditError, match="no more"):
        run(Oracle(fails_at=3), images)
    file = images.parent / "out" / "answers" / "pope.random.jsonl"
    file.write_bytes(file.read_bytes() + broken)
    with pytest.raises(QkeditError, match=r"pope\.random\.jsonl, line 4: is not an answer of a run"):
        run(oracle := Oracle(), images)
    assert not oracle.sessions


def test_a_run_with_other_settings_is_refused(images: Path) -> None:
    with pytest.raises(QkeditError, match="no more"):
        run(Oracle(fails_at=3), images)
    before = contents(images.parent / "out")
    other = Oracle(identity={"weights_sha256": "b" * 64})
    expectations = [
        (other, (), {}, r"weights_sha256 was aaaaaaaaaaaa… and is bbbbbbbbbbbb…"),
        (Oracle(), (), {"limit": 4}, "limit was null and is 4"),
        (Oracle(), (), {"prompt": "{question} Say it."}, r'prompt was null and is "\{question\} Say it\."'),
        (Oracle(), (task(4),), {}, r"questions\.pope\.random\.n was 6 and is 4"),
        (Oracle(), (replace(task(), max_new_tokens=8),), {}, r"max_new_tokens\.pope\.random was 16 and is 8"),
        (Oracle(), (task(split="popular"),), {}, r"questions\.pope\.random\.n was 6 and is null"),
    ]
    for oracle, tasks, options, words in expectations:
        with pytest.raises(UsageError, match=words) as caught:
            run(oracle, images, *tasks, **options)
        assert "--overwrite" in caught.value.remedy
        assert oracle.sessions == 0
        assert contents(images.parent / "out") == before


def test_values_observed_after_loading_must_equal_the_record(images: Path) -> None:
    with pytest.raises(QkeditError, match="no more"):
        run(Oracle(fails_at=3), images)
    with pytest.raises(UsageError, match='attention was "sdpa" and is "eager"'):
        run(oracle := Oracle(observed={"attention": "eager"}), images)
    assert oracle.asked == []


def test_overwriting_starts_again_and_keeps_other_files(images: Path) -> None:
    run(Oracle(), images, task(), task(4, "popular"))
    note = images.parent / "out" / "note.txt"
    note.write_text("mine")
    (images.parent / "out" / "answers" / "mine.jsonl").write_text("mine")
    oracle = Oracle(identity={"weights_sha256": "b" * 64})
    run(oracle, images, overwrite=True)
    assert len(oracle.asked) == 6
    assert sorted(contents(images.parent / "out")) == [
        "answers/mine.jsonl",
        "answers/pope.random.jsonl",
        "note.txt",
        "result.json",
        "run.json",
    ]
    assert note.read_text() == "mine"
    run(again := Oracle(identity={"weights_sha256": "b" * 64}), images)
    assert again.sessions == 0


def test_an_overwritten_run_is_kept_until_the_model_is_ready(images: Path) -> None:
    run(Oracle(), images)
    before = contents(images.parent / "out")

    class Broken(Oracle):
        def session(self):  # type: ignore[no-untyped-def]
            raise QkeditError("cannot be loaded")

    with pytest.raises(QkeditError, match="cannot be loaded"):
        run(Broken(), images, overwrite=True)
    assert contents(images.parent / "out") == before


def test_a_model_that_cannot_be_loaded_leaves_no_files(images: Path) -> None:
    class Broken(Oracle):
        def session(self):  # type: ignore[no-untyped-def]
            raise QkeditError("cannot be loaded")

    with pytest.raises(QkeditError, match="cannot be loaded"):
        run(Broken(), images)
    assert not (images.parent / "out").exists()


def test_missing_directories_are_made_when_the_run_begins(images: Path) -> None:
    with pytest.raises(QkeditError, match="no more"):
        run(Oracle(fails_at=0), images, out="a/b/early")
    run(Oracle(), images, out="a/b/out")
    assert (images.parent / "a/b/out/result.json").is_file()


def test_unsuitable_output_directories_are_refused(images: Path) -> None:
    base = images.parent
    (base / "file").write_text("x")
    (base / "full").mkdir()
    (base / "full" / "x").write_text("x")
    (base / "strange").mkdir()
    (base / "strange" / "run.json").write_text("[]")
    for name, words in {
        "file": "is not a directory",
        "full": "holds files, but no run",
        "file/none/out": "file is not a directory",
        "strange": "is not a record of a run",
    }.items():
        for overwrite in (False,) if name == "strange" else (False, True):
            with pytest.raises(UsageError, match=words):
                run(oracle := Oracle(), images, out=name, overwrite=overwrite)
            assert oracle.sessions == 0
    assert (base / "full" / "x").read_text() == "x"
    run(Oracle(), images, out="strange", overwrite=True)
    assert sorted(os.listdir(base / "strange")) == ["answers", "result.json", "run.json"]


def test_a_second_run_of_a_directory_is_refused(images: Path) -> None:
    """Try a second run while the first one runs, from the start and after a resume."""
    words = "another run uses this directory"

    def meanwhile(overwrite: bool) -> Oracle:
        def answer(request: object) -> str:
            with pytest.raises(QkeditError, match=words):
                run(Oracle(), images, overwrite=overwrite)
            return "Yes."

        return Oracle(answer=answer, fails_at=2)

    for overwrite in (False, True):
        with pytest.raises(QkeditError, match="no more"):
            run(meanwhile(overwrite), images)
    run(oracle := Oracle(), images)
    assert len(oracle.asked) == 2


def test_missing_images_are_named_before_the_run(images: Path) -> None:
    for name, words in {"2.png": r"2\.png: the image does not exist;", "0.png": "2 of 3 images are missing"}.items():
        (images / name).unlink()
        with pytest.raises(QkeditError, match=words):
            run(oracle := Oracle(), images)
        assert oracle.sessions == 0
        assert not (images.parent / "out").exists()
    run(Oracle(), write_images(images), limit=2)


def test_a_task_may_leave_out_questions_without_images(images: Path) -> None:
    open_part = replace(task(), chosen_by_images=True)
    (images / "1.png").unlink()
    run(oracle := Oracle(), images, open_part, limit=3)
    assert [request.id for request in oracle.asked] == ["0", "1", "4"]
    for file in images.iterdir():
        file.unlink()
    with pytest.raises(QkeditError, match="3 of 3 images are missing"):
        run(Oracle(), images, open_part, out="other")


def test_images_may_be_in_the_folder_of_their_task(images: Path) -> None:
    (images / "count").mkdir()
    (images / "0.png").rename(images / "count" / "0.png")
    (images / "count" / "images").mkdir()
    (images / "1.png").rename(images / "count" / "images" / "1.png")
    asked = tuple(replace(question, fields={"task": "count"}) for question in questions())
    run(oracle := Oracle(), images, replace(task(), questions=asked))
    places = [request.image.relative_to(images).as_posix() for request in oracle.asked if request.image]
    assert places[::2] == ["count/0.png", "count/images/1.png", "2.png"]


def test_a_question_may_have_no_image(images: Path) -> None:
    asked = (replace(questions()[0], image=""), *questions()[1:])
    run(oracle := Oracle(), images, replace(task(), questions=asked))
    assert [request.image is None for request in oracle.asked] == [True, False, False, False, False, False]


def test_a_prompt_template_replaces_the_question(images: Path) -> None:
    run(oracle := Oracle(), images, prompt="{question} {} Answer {yes} or no.")
    assert oracle.asked[1].prompt == questions()[1].prompt + " {} Answer {yes} or no."
    with pytest.raises(UsageError, match=r"the same for 6 different questions of pope\.random"):
        run(Oracle(), images, prompt="Describe it.", out="other")
    alike = tuple(replace(question, prompt="What is there?") for question in questions())
    run(oracle := Oracle(), images, replace(task(), questions=alike), prompt="Describe it.", out="other")
    assert {request.prompt for request in oracle.asked} == {"Describe it."}


def test_a_limit_applies_to_each_split(images: Path) -> None:
    finished = run(oracle := Oracle(), images, task(), task(4, "popular"), limit=3)
    assert [request.task for request in oracle.asked] == ["pope.random"] * 3 + ["pope.popular"] * 3
    assert [score.n for score in finished.scores] == [3, 3]
    assert finished.run["limit"] == 3


def test_warnings_are_part_of_the_result(images: Path) -> None:
    finished = run(Oracle(warnings=["beware"]), images)
    assert finished.warnings == ("beware",)
    assert json.loads(finished.file.read_text())["warnings"] == ["beware"]


def test_a_full_disk_is_an_error_and_the_answer_is_requested_again(images: Path) -> None:
    """A full disk leaves an incomplete line at the end of the file."""
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def answer(request: object) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
        return "Yes. " * 50

    try:
        with pytest.raises(QkeditError, match="cannot write the answer"):
            run(oracle := Oracle(answer=answer), images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    file = images.parent / "out" / "answers" / "pope.random.jsonl"
    assert file.stat().st_size == 1500
    whole = file.read_bytes().count(b"\n")
    assert len(oracle.asked) == whole + 1
    run(again := Oracle(), images)
    assert [request.id for request in again.asked] == [str(number) for number in range(whole, 6)]
