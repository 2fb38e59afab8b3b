"""Test that after a disk error the result is still printed, with one sentence and without a partial file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qkedit.checkpoint.io import whole_file
from qkedit.demo import SMALL_DEMO
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.evaluation.files import json_rows
from tests.cli.command import qkedit

NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.EROFS, errno.ENOTCONN)


def refuse(number: int) -> Callable[..., None]:
    def refusing(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return refusing


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Return a directory with scenes, answers to them, and their score."""
    write_scenes(list(make_scenes(2, seed=1, world=SMALL)), tmp_path / "scenes")
    rows = map(json.loads, (tmp_path / "scenes" / "pope_random.json").read_text().splitlines())
    lines = [json.dumps({"id": str(row["question_id"]), "answer": "Yes."}) for row in rows]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.json").write_text(qkedit(*scoring(tmp_path), "--json").stdout)
    return tmp_path


def scoring(directory: Path) -> tuple[str | Path, ...]:
    return (
        "score",
        "pope",
        "--split",
        "random",
        "--answers",
        directory / "answers.jsonl",
        "--data",
        directory / "scenes",
    )


def commands(directory: Path) -> dict[str, tuple[str | Path, ...]]:
    return {
        "lines.jsonl": (*scoring(directory), "--per-item", directory / "lines.jsonl"),
        "pr.md": ("compare", directory / "a.json", directory / "a.json", "--markdown", directory / "pr.md"),
        "spectra.csv": ("inspect", SMALL_DEMO, "--layers", "2", "--csv", directory / "spectra.csv"),
        "page.html": ("inspect", SMALL_DEMO, "--layers", "2", "--html", directory / "page.html"),
    }


@pytest.mark.parametrize("number", NUMBERS)
def test_the_result_is_printed_if_its_file_cannot_be_written(
    scored: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {name: qkedit(*words) for name, words in commands(scored).items()}
    for name in plain:
        (scored / name).unlink()
    before = sorted(scored.iterdir())
    monkeypatch.setattr(whole_file.os, "fsync", refuse(number))
    for name, words in commands(scored).items():
        shown = qkedit(*words)
        assert shown.code == 1
        # The same output as with the file, except for the line that names it.
        assert plain[name].stdout == f"{shown.stdout}\nWritten: {scored / name}\n"
        assert f"{name}: cannot write the file: " in shown.stderr.splitlines()[-1]
        assert os.strerror(number)[1:] in shown.stderr
        document = qkedit(*words, "--json").document
        assert (document["status"], document["written"]) == ("failed", [])
        assert document["error"]["what"].startswith("cannot write the file")
        assert "results" in document or "layers" in document
    assert sorted(scored.iterdir()) == before


def test_written_files_are_reported(scored: Path) -> None:
    for name, words in commands(scored).items():
        assert qkedit(*words, "--json").document["written"] == [str(scored / name)]
        assert (scored / name).stat().st_mode & 0o777 == (scored / "a.json").stat().st_mode & 0o777


def test_an_unwritable_path_is_refused_before_the_work(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the work began before the path was checked")

    monkeypatch.setattr(whole_file.tempfile, "TemporaryFile", lambda dir: refuse(errno.EROFS)())
    monkeypatch.setattr(json_rows, "read_text", never)
    monkeypatch.setattr("qkedit.inspection.spectra.inspect", never)
    monkeypatch.setattr("qkedit.laboratory.processes.run_jobs", never)
    saving = {"saved": ("demo", "--scenes", "4", "--save", scored / "saved")}
    running = (
        "eval",
        SMALL_DEMO,
        "-b",
        "pope.random",
        "--data",
        scored / "scenes",
        "--images",
        scored / "scenes" / "images",
    )
    for name, words in (commands(scored) | saving).items():
        refused = qkedit(*words)
        assert refused.code == 1
        assert f"{name}: cannot write the file: read-only file system; choose a place" in refused.sentence()
    monkeypatch.undo()
    monkeypatch.setattr(whole_file.tempfile, "TemporaryFile", lambda dir: refuse(errno.EROFS)())
    monkeypatch.setattr("qkedit.runtime.generation.load", never)
    assert "cannot write the file: read-only" in qkedit(*running, "--out", scored / "run").sentence()


@pytest.mark.parametrize("number", NUMBERS)
def test_any_other_system_error_is_one_sentence(scored: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*arguments: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr("qkedit.evaluation.files.result_files.read_object", refusing)
    for words in (
        ("compare", scored / "a.json", scored / "a.json"),
        ("gate", scored / "a.json", "--require", "f1>=0"),
    ):
        refused = qkedit(*words)
        assert refused.code == 1
        assert refused.sentence().startswith("/somewhere/file: cannot go on: ")


def test_an_earlier_file_is_kept_if_writing_a_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ("n" * 250)  # nearly the longest possible name
    whole_file.write_whole(file, b"earlier")
    for error in (KeyboardInterrupt, MemoryError):

        def interrupted(descriptor: int, error: type[BaseException] = error) -> None:
            raise error

        monkeypatch.setattr(whole_file.os, "fsync", interrupted)
        with pytest.raises(error):
            whole_file.write_whole(file, b"new")
        assert [file.read_bytes(), list(tmp_path.iterdir())] == [b"earlier", [file]]
