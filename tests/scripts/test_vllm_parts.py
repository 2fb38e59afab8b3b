"""Test how the parts of the comparison on vLLM run: several at a time, and none after one that fails."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts.loading import SCRIPTS, load_script

# A part that notes its times and its environment, and writes to both streams.
PART = """
import json, os, subprocess, sys, time
out = sys.argv[sys.argv.index("--out") + 1]
print("output of", sys.argv[-1], flush=True)
print("errors of", sys.argv[-1], file=sys.stderr, flush=True)
begun = time.time()
time.sleep(float(os.environ.get("SECONDS_OF_PART", "0.5")))
json.dump({"begun": begun, "ended": time.time(), "binding": os.environ.get("BINDING")}, open(out, "w"))
sys.exit(int(os.environ.get("CODE_OF_PART", "0")))
"""
# A part that starts another process, as those do that start servers, and waits for it.
PARENT = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text(str(child.pid))
child.wait()
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS / "vllm"), *sys.path])
    return load_script("run_parts")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "part.py").write_text(PART)
    (tmp_path / "parent.py").write_text(PARENT)
    return tmp_path


def times(results: Path, name: str) -> tuple[float, float]:
    found = json.loads((results / f"{name}.json").read_text())
    return found["begun"], found["ended"]


def is_running(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_parts_run_at_a_time_with_their_own_environments_and_logs(script: ModuleType, scripts: Path) -> None:
    slow = {"SECONDS_OF_PART": "3"}
    parts = [
        script.Part("one", "part.py", ("one",), slow),
        script.Part("two", "part.py", ("two",), slow | {"BINDING": "nobind"}),
        script.Part("three", "part.py", ("three",)),
    ]
    seconds = script.run(parts, 2, scripts, scripts, scripts)
    assert set(seconds) == {"one", "two", "three"}
    one, two, three = (times(scripts, name) for name in ("one", "two", "three"))
    assert max(one[0], two[0]) < min(one[1], two[1])
    assert three[0] > min(one[1], two[1])
    assert json.loads((scripts / "two.json").read_text())["binding"] == "nobind"
    assert json.loads((scripts / "one.json").read_text())["binding"] is None
    assert (scripts / "two.log").read_text() == "output of two\nerrors of two\n"


def test_a_failed_part_shows_its_log_and_ends_the_others(
    script: ModuleType, scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        script.Part("parent", "parent.py"),
        script.Part("fails", "part.py", ("fails",), {"CODE_OF_PART": "3", "SECONDS_OF_PART": "2"}),
        script.Part("later", "part.py", ("later",)),
    ]
    with pytest.raises(SystemExit, match="fails failed with exit code 3"):
        script.run(parts, 2, scripts, scripts, scripts)
    shown = capsys.readouterr().err
    assert "output of fails\nerrors of fails\n" in shown
    assert not (scripts / "later.log").exists()
    child = int((scripts / "parent.json").read_text())
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_every_named_part_exists_once(script: ModuleType) -> None:
    parts = (*script.COMPARED, *script.ALONE)
    assert len({part.name for part in parts}) == len(parts)
    assert all((SCRIPTS / "vllm" / part.script).is_file() for part in (*parts, *script.QUICK))
    compared = [part.options[1].split(",") for part in script.COMPARED if part.name.startswith("families")]
    assert sorted(name for names in compared for name in names) == sorted(
        ["demo-small", *load_script("checkpoints").FAMILIES]
    )
    bound = [part for part in script.COMPARED if part.environment["VLLM_CPU_OMP_THREADS_BIND"] != "nobind"]
    assert not bound  # two parts must not be bound to the same core


def test_an_input_is_written_once_though_another_process_writes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS / "vllm"), *sys.path])
    write_once = load_script("inputs").write_once
    calls: list[Path] = []

    def make(directory: Path) -> None:
        calls.append(directory)
        directory.mkdir()
        (directory / "file").write_text("mine")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("theirs")

    assert write_once(tmp_path / "made", make) == tmp_path / "made"
    assert (tmp_path / "made" / "file").read_text() == "theirs"
    assert [place.name for place in tmp_path.iterdir()] == ["made"]
    write_once(tmp_path / "made", make)
    assert len(calls) == 1
