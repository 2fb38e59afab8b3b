"""Test that every script runs with only its own folder on the path, and describes itself without running."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.scripts.loading import SCRIPTS

PYTHON = sorted(file for file in SCRIPTS.rglob("*.py") if 'if __name__ == "__main__"' in file.read_text("utf-8"))
LOCAL = {place.stem for file in PYTHON for place in file.parent.iterdir()}
SHELL = sorted(SCRIPTS.rglob("*.sh"))


def name_of(file: Path) -> str:
    return str(file.relative_to(SCRIPTS))


@pytest.mark.parametrize("script", PYTHON, ids=name_of)
def test_a_python_script_describes_itself_and_refuses_unknown_options(
    script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run it in this process, where torch is imported once for all of them."""
    # The folders of tests are not on the path of a user's script; qkedit is installed.
    others = [place for place in sys.path if not Path(place or ".").resolve().is_relative_to(SCRIPTS)]
    monkeypatch.chdir(tmp_path)

    def exit_code(option: str) -> object:
        monkeypatch.setattr(sys, "path", [str(script.parent), *others, str(ROOT)])
        monkeypatch.setattr(sys, "argv", [str(script), option])
        for name in [name for name in sys.modules if name.partition(".")[0] in LOCAL]:
            monkeypatch.delitem(sys.modules, name)
        before = set(sys.modules)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        for name in [name for name in set(sys.modules) - before if name.partition(".")[0] in LOCAL]:
            del sys.modules[name]
        return ended.value.code

    assert exit_code("--help") == 0
    assert script.name in capsys.readouterr().out
    assert exit_code("--no-such-option") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SHELL, ids=name_of)
def test_a_shell_script_describes_itself_and_refuses_unknown_options(script: Path, tmp_path: Path) -> None:
    def run(option: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", script, option], cwd=tmp_path, capture_output=True, text=True)

    about = script.read_text("utf-8").splitlines()[1].removeprefix("# ")
    described = run("--help")
    assert (described.returncode, described.stdout.splitlines()[0], described.stderr) == (0, about, "")
    if script.name != "test.sh":  # it passes options to pytest
        refused = run("--no-such-option")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())
