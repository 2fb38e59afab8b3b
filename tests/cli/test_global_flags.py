"""Test that global flags mean the same before and after a command's name."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from qkedit.cli.application import application, made_command
from qkedit.cli.command_table import COMMANDS, GLOBAL_FLAGS, called
from qkedit.cli.flags.global_flags import global_flags
from qkedit.demo import SMALL_DEMO
from tests.cli.command import qkedit

DRY = ["steer", SMALL_DEMO, "--dry-run"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("steer m", "steer"),
        ("--json steer m", "steer"),
        ("-q --config f.yaml steer m", "steer"),
        ("--config=f.yaml plugins --json add scr", "plugins add"),
        ("plugins --model add", "plugins"),
        ("--version steer", None),
        ("--config steer", None),
        ("", None),
    ],
)
def test_the_command_is_found_after_global_flags(words: str, named: str | None) -> None:
    assert called(words.split()) == named


def test_global_flags_are_declared_once() -> None:
    declared = {name for parameter in global_flags(of_command=True) for name in _words(parameter)}
    assert declared == set(GLOBAL_FLAGS)
    for name in COMMANDS:
        assert declared <= {word for parameter in made_command(name).params for word in parameter.opts}, name


def _words(parameter: inspect.Parameter) -> list[str]:
    [option] = parameter.annotation.__metadata__
    return [option.default, *(option.param_decls or ())]


@pytest.mark.parametrize("words", [["--json", *DRY], [*DRY, "--json"], ["--json", *DRY, "--json"]])
def test_json_may_come_before_or_after_the_command(words: list[str]) -> None:
    assert qkedit(*words).document["command"] == "steer"
    assert qkedit("--json", "plugins", "list").document == qkedit("plugins", "--json", "list").document


@pytest.mark.parametrize("words", [["--json", "steer", "--bogus"], ["--json", "steeer"], ["plugins", "--json", "ad"]])
def test_an_error_after_a_leading_json_flag_is_json(words: list[str]) -> None:
    result = qkedit(*words)
    assert (result.code, result.stderr, result.document["status"]) == (2, "", "failed")


def test_an_old_command_name_is_found_after_global_flags(tmp_path: Path) -> None:
    document = qkedit("--json", "attach", "scr", "--model", tmp_path).document
    assert document["command"] == "plugins add"
    assert "`qkedit attach` is now" in document["warnings"][0]


def test_quiet_may_come_before_the_command(tmp_path: Path) -> None:
    for words in (["--quiet", *DRY[:2]], ["-q", *DRY[:2]]):
        result = qkedit(*words, "--layers", "2", "--out", tmp_path / "out", "--overwrite", "--no-fsync")
        assert (result.code, result.stdout, result.stderr) == (0, "", "")


def test_debug_may_come_before_the_command(tmp_path: Path) -> None:
    assert "Traceback" in qkedit("--debug", "steer", tmp_path / "missing", "--dry-run").stderr


def test_config_may_come_before_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in (2, 3):
        (tmp_path / f"{layers}.yaml").write_text(f"json: true\nsteer:\n  layers: {layers}\n")
    first, second = tmp_path / "2.yaml", tmp_path / "3.yaml"
    assert qkedit("--config", first, *DRY).document["options"]["layers"] == "2"
    assert qkedit(f"--config={first}", *DRY, "--layers", "5").document["options"]["layers"] == "5"
    # The flag after the command has precedence, and the command line over the environment.
    assert qkedit("--config", first, *DRY, "--config", second).document["options"]["layers"] == "3"
    monkeypatch.setenv("QKEDIT_CONFIG", str(second))
    assert qkedit("--config", first, *DRY).document["options"]["layers"] == "2"
    monkeypatch.setenv("QKEDIT_JSON", "0")
    assert qkedit("--json", *DRY).document["options"]["layers"] == "3"


def test_listing_the_commands_does_not_change_their_flags() -> None:
    group = application()
    group.get_help(group.make_context("qkedit", [], resilient_parsing=True))
    assert [name for name, command in group.commands.items() if not command.params] == []
