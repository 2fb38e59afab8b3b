"""Test `qkedit eval` on the demo and its scenes: complete, killed and resumed runs, and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from qkedit.demo import SMALL_DEMO, demo_checkpoint
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.files.result_files import read_scores
from tests.cli.command import Result, Runs, qkedit

SHORT = ("--max-new-tokens", "4", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes")
    write_scenes(list(make_scenes(6, seed=1, world=SMALL)), directory)
    return directory


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def of(scenes: Path, *more: str | Path, model: str | Path = SMALL_DEMO) -> tuple[str | Path, ...]:
    return ("eval", model, "--data", scenes, "--images", scenes / "images", *SHORT, *more)


def evaluated(scenes: Path, out: Path, *more: str | Path, model: str | Path = SMALL_DEMO) -> Result:
    return qkedit(*of(scenes, "--out", out, *more, model=model))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def untimed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return a run's files without the durations of its answers."""
    return {name: re.sub(rb', "seconds": [0-9.e-]+', b"", content) for name, content in files.items()}


def question_count(scenes: Path, split: str) -> int:
    return len((scenes / f"pope_{split}.json").read_bytes().splitlines())


def test_a_run_prints_a_table_and_writes_its_files(scenes: Path, out: Path) -> None:
    done = evaluated(scenes, out, "-b", "pope", "-b", "custom", "--limit", "4")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "POPE, parser official"
    assert [line.split()[:2] for line in lines[2:5]] == [["random", "4"], ["popular", "4"], ["adversarial", "4"]]
    assert "custom questions, variant words" in done.stdout
    assert lines[-1] == f"Written: {out / 'result.json'}"
    assert sorted(path.name for path in (out / "answers").iterdir()) == [
        "custom.jsonl",
        "pope.adversarial.jsonl",
        "pope.popular.jsonl",
        "pope.random.jsonl",
    ]


def test_json_holds_results_that_can_be_scored_again(scenes: Path, out: Path) -> None:
    plugin = "scr:layers=0-1,sources=4"
    more = ("--benchmark", "pope.adversarial", "--limit", "5", "--plugin", plugin, "--batch-size", "3")
    done = evaluated(scenes, out, *more, "--prompt", "{question} Answer yes or no.", "--json")
    document = done.document
    assert [document[key] for key in ("command", "status", "asked", "out")] == ["eval", "done", 5, str(out)]
    result = json.loads((out / "result.json").read_bytes())
    assert (result["results"], result["run"]) == (document["results"], document["run"])
    run = result["run"]
    shards = sorted(demo_checkpoint(SMALL_DEMO).glob("*.safetensors"))
    import hashlib

    sums = "".join(f"{hashlib.sha256(shard.read_bytes()).hexdigest()}  {shard.name}\n" for shard in shards)
    assert run["weights_sha256"] == hashlib.sha256(sums.encode()).hexdigest()
    assert run["plugins"] == [{"name": "scr", "options": {"layers": "0-1", "sources": 4}}]
    assert run["decoding"] == {"method": "greedy", "max_new_tokens": {"pope.adversarial": 4}}
    assert (run["model"], run["dtype"], run["device"], run["limit"]) == (SMALL_DEMO, "float32", "cpu", 5)
    assert run["prompt"] == "{question} Answer yes or no."
    assert run["attention"] in ("sdpa", "eager")
    assert set(run["libraries"]) == {"qkedit", "torch", "transformers"}
    assert run["batch_size"] == 3
    (score,) = read_scores(out).scores
    assert (score.benchmark, score.split, score.n) == ("pope", "adversarial", 5)

    # `score` gives the same result for the answers.
    answers = out / "answers" / "pope.adversarial.jsonl"
    again = qkedit(
        "score", "pope", "--split", "adversarial", "--answers", answers, "--data", scenes, "--allow-missing", "--json"
    ).document
    assert again["results"][0]["counts"] == score.counts | {"missing": question_count(scenes, "adversarial") - 5}


def test_answers_equal_those_of_generate(scenes: Path, out: Path) -> None:
    evaluated(scenes, out, "-b", "pope", "--split", "random", "--limit", "2")
    for line in (out / "answers" / "pope.random.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        image = scenes / "images" / row["image"]
        alone = qkedit(
            "generate", SMALL_DEMO, "--image", image, "--prompt", row["question"], *SHORT, "--json"
        ).document
        assert row["answer"] == alone["text"]


def test_a_killed_run_resumes_without_asking_twice(scenes: Path, out: Path, tmp_path: Path, children: Runs) -> None:
    options = ("--benchmark", "pope.random", "--batch-size", "1", "--limit", "12")
    answers = out / "answers" / "pope.random.jsonl"
    for _ in range(5):  # on a busy machine, a run may end before it can be killed
        children.start(*of(scenes, "--out", out, "--overwrite", *options))
        deadline = time.monotonic() + 120
        while not (answers.exists() and answers.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.002)
        children.signal(signal.SIGKILL)
        killed = children.finish()
        if not (out / "result.json").exists() and answers.read_bytes().count(b"\n") < 12:
            break
        shutil.rmtree(out)
    before = answers.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    total = 12
    assert killed.code == -signal.SIGKILL
    assert 2 <= whole.count(b"\n") < total
    assert not (out / "result.json").exists()

    document = evaluated(scenes, out, *options, "--json").document
    assert document["asked"] == total - whole.count(b"\n")
    after = answers.read_bytes()
    assert after.startswith(whole)
    ids = [json.loads(line)["id"] for line in after.splitlines()]
    assert ids == list(dict.fromkeys(ids))
    assert len(ids) == total <= question_count(scenes, "random")

    evaluated(scenes, tmp_path / "whole", *options)
    assert untimed(contents(out)) == untimed(contents(tmp_path / "whole"))
    assert evaluated(scenes, out, *options, "--json").document["asked"] == 0


def test_a_run_with_other_weights_plugins_or_settings_is_refused(scenes: Path, out: Path, tmp_path: Path) -> None:
    model = shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model")
    options = ("-b", "pope.random", "--limit", "2")
    assert evaluated(scenes, out, *options, model=model).code == 0
    moved = model.rename(tmp_path / "moved")
    assert evaluated(scenes, out, *options, "--json", model=moved).document["asked"] == 0  # the same weights elsewhere
    before = contents(out)
    for change, words in {
        "weights": "weights_sha256 was",
        "plugins": "plugins was [] and is",
        "settings": "settings_sha256 was",
    }.items():
        other = shutil.copytree(moved, tmp_path / change)
        if change == "weights":
            shard = sorted(other.glob("*.safetensors"))[0]
            content = shard.read_bytes()
            shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif change == "plugins":
            assert qkedit("plugins", "add", "scr", "--model", other).code == 0
        else:
            (other / "chat_template.jinja").write_text("{{ messages }}")
        refused = evaluated(scenes, out, *options, model=other)
        assert refused.code == 2
        assert words in refused.stderr
        assert "--overwrite" in refused.stderr
        assert contents(out) == before
    anew = evaluated(scenes, out, *options, "--overwrite", "--json", model=tmp_path / "plugins").document
    assert anew["asked"] == 2
    assert anew["run"]["plugins"] == [{"name": "scr", "options": {}}]


def test_a_missing_image_is_named_before_the_model_is_opened(scenes: Path, out: Path, tmp_path: Path) -> None:
    images = shutil.copytree(scenes / "images", tmp_path / "images")
    (images / "scene_000002.png").unlink()
    request = ("eval", SMALL_DEMO, "-b", "pope.random", "--data", scenes, "--images", images, "--out", out, *SHORT)
    refused = qkedit(*request)
    assert refused.code == 1
    assert refused.sentence().startswith(f"{images / 'scene_000002.png'}: the image does not exist;")
    assert not out.exists()
    (images / "scene_000002.png").write_bytes(b"no picture")
    broken = qkedit(*request)
    assert broken.code == 2
    assert "scene_000002.png: is not an image" in broken.stderr
    shutil.copy(scenes / "images" / "scene_000002.png", images)
    done = qkedit(*request, "--json").document
    assert 0 < done["asked"] < question_count(scenes, "random")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-b", "pop"), "did you mean 'pope'"),
        ((), "no benchmark is named"),
        (("-b", "pope.some"), "there is no split 'some'"),
        (("-b", "pope", "--split", "some"), "there is no split 'some'"),
        (("-b", "pope", "-b", "custom", "--split", "random"), "is for one benchmark"),
        (("-b", "pope.random", "--split", "random"), "is for one benchmark"),
        (("-b", "pope", "-b", "pope.random"), "pope.random is named twice"),
        (("-b", "pope", "--prompt", "Is it?"), "the same for"),
        (("-b", "pope", "--plugin", "scrr"), "did you mean 'scr'"),
        (("-b", "pope", "--dtype", "float8"), "is not a dtype"),
        (("-b", "custom.a/b"), "is not the name of a split"),
        (("-b", "pope", "--endpoint", "http://127.0.0.1:9"), "a model is named as well"),
        (("-b", "pope", "--limit", "0"), "greater than or equal to 1"),
    ],
)
def test_invalid_requests_are_refused(scenes: Path, out: Path, arguments: tuple[str, ...], words: str) -> None:
    refused = evaluated(scenes, out, *arguments)
    assert refused.code == 2
    assert words in refused.sentence()
    assert not out.exists()


def test_required_options_are_named(scenes: Path, out: Path) -> None:
    whole = {"": SMALL_DEMO, "--data": scenes, "--images": scenes / "images", "--out": out, "-b": "pope"}
    for left_out, words in {
        "": "no model is named",
        "--data": "no questions are given",
        "--images": "no directory of images is given",
        "--out": "no output directory is given",
    }.items():
        arguments = [text for name, value in whole.items() if name != left_out for text in (name, value) if text]
        refused = qkedit("eval", *arguments)
        assert refused.code == 2
        assert words in refused.sentence()
    with_plugin = qkedit("eval", "--endpoint", "http://127.0.0.1:9", *as_arguments(whole), "--plugin", "scr")
    assert "an endpoint has its own plug-ins" in with_plugin.sentence()
    place = "http://127.0.0.1:9"
    twice = qkedit("eval", "--endpoint", place, "--endpoint", f"{place}/v1", *as_arguments(whole))
    assert (twice.code, twice.sentence()) == (2, f"--endpoint: {place}/v1 is named twice; name it once.")
    without_scheme = qkedit("eval", "--endpoint", place, *as_arguments(whole), "--image-urls", "/data/val2014")
    assert (without_scheme.code, "--image-urls /data/val2014: is not the URL" in without_scheme.sentence()) == (
        2,
        True,
    )
    assert os.listdir(out.parent) == []


def as_arguments(options: dict[str, object]) -> list[str]:
    return [str(text) for name, value in options.items() if name for text in (name, value)]


def test_a_pipeline_from_steer_to_gate(scenes: Path, tmp_path: Path) -> None:
    """Steer, evaluate both models, compare and gate."""
    edited, base, after = tmp_path / "edited", tmp_path / "base", tmp_path / "after"
    assert qkedit("steer", SMALL_DEMO, "--layers", "2-5", "--k", "4", "--out", edited, "--quiet").code == 0
    options = ("-b", "pope", "-b", "custom", "--limit", "6", "--batch-size", "6", "--max-new-tokens", "12")
    assert evaluated(scenes, base, *options).code == 0
    done = evaluated(scenes, after, *options, "--json", model=edited)
    assert done.code == 0
    of_base = json.loads((base / "result.json").read_bytes())["run"]
    assert of_base["weights_sha256"] != done.document["run"]["weights_sha256"]
    assert of_base["questions"] == done.document["run"]["questions"]

    compared = qkedit("compare", base, after, "--json")
    assert compared.code == 0, compared.stderr
    passed = ("gate", after, "--require", "pope.random.accuracy>=0", "--baseline", base)
    assert qkedit(*passed, "--no-worse", "pope.random.accuracy:1").code == 0
    # One of these fails for any answers.
    failed = qkedit("gate", after, "--require", "pope.random.accuracy>=1", "--require", "pope.random.accuracy<=0.9")
    assert failed.code == 3
