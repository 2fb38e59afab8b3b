"""Test the commands in the README: those of the demo are run, the others are parsed with their options."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qkedit.cli.application import made_command
from qkedit.cli.command_table import COMMANDS
from qkedit.cli.old_words import in_todays_words
from tests.cli.command import ROOT, qkedit

README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def commands(text: str) -> Iterator[list[str]]:
    """Return the words of every `qkedit …` in a block of shell."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["qkedit"]:
                yield in_todays_words(words[1:])[0]


def command_of(words: list[str]) -> str:
    """Return the command's name, in one word or two."""
    return " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]


ALL = list(commands(README))
DEMO = [words for words in ALL if "demo" in words and words[0] in ("steer", "verify")]


def test_the_readme_has_commands_of_every_kind() -> None:
    assert len(ALL) > 20
    assert {command_of(words) for words in ALL} <= set(COMMANDS)
    assert [words[0] for words in DEMO] == ["steer", "verify"]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_options_of_every_command_exist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QKEDIT_CONFIG", raising=False)
    if "--config" in words:
        return
    name = command_of(words)
    # Raises for an unknown option, a value of a wrong type or too many arguments.
    assert made_command(name).make_context(name, list(words[len(name.split()) :])).params


def test_the_first_screen_shows_the_output_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steered, verified = (qkedit(*words) for words in DEMO)
    assert (steered.code, verified.code) == (0, 0)
    shown = re.search(r"```\n(steered .*?)```", README, re.DOTALL)
    assert shown is not None

    def lasting(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("time")]

    assert lasting(steered.stdout) == lasting(shown[1])


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    block = re.search(r"## From Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "navy").save("street.jpg")
    exec(block[1], {})
    assert (tmp_path / "edited" / "qkedit.json").is_file()


def test_every_extra_and_every_linked_file_exists() -> None:
    for name in re.findall(r"\.\[([a-z,]+)\]'", README):
        assert set(name.split(",")) <= set(PROJECT["optional-dependencies"]), name
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_the_extra_all_is_all_but_the_tests_java_programs_and_vllm() -> None:
    extras = PROJECT["optional-dependencies"]
    others = {"all", "test", "coco-caption", "vllm"}
    assert set(extras["all"][0].removeprefix("qkedit[").removesuffix("]").split(",")) == set(extras) - others


def test_install_commands_install_the_checkout() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```(?:sh|dockerfile)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    installs = [line for block in blocks for line in block.splitlines() if "pip install" in line]
    assert any(line.startswith("pip install -c constraints.txt .") for line in installs)
    # The package has no public address, and the package of this name on PyPI is another one.
    assert [line for line in installs if re.search(r"install [^&]*[ ']qkedit\b", line)] == []
    assert not any("git clone" in block for block in blocks)
