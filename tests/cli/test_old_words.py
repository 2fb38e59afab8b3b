"""Test that former names of commands and options work, warn, and are not listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.cli.command_table import COMMANDS
from qkedit.cli.old_words import RENAMED, in_todays_words
from qkedit.demo import SMALL_DEMO, demo_checkpoint
from tests.cli.command import qkedit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_checkpoint(SMALL_DEMO), tmp_path / "model"))


@pytest.mark.parametrize(
    ("given", "today"),
    [
        ("attach scr --model m", "plugins add scr --model m"),
        ("detach --model m", "plugins remove --model m"),
        ("coherence m", "kv-coherence m"),
        ("plugins", "plugins list"),
        ("plugins m", "plugins list m"),
        ("plugins --json", "plugins list --json"),
        ("plugins add", "plugins add"),
        ("plugins --help", "plugins --help"),
        ("--version", "--version"),
        ("generate attach", "generate attach"),
        ("steer --out attach", "steer --out attach"),
        ("", ""),
    ],
)
def test_each_old_name_is_replaced(given: str, today: str) -> None:
    words, warning = in_todays_words(given.split())
    assert words == today.split()
    assert (warning is not None) == (given.split()[:1] != [] and given.split()[0] in RENAMED)


@given(st.lists(st.sampled_from([*RENAMED, *COMMANDS, "plugins", "add", "list", "--json", "-h", "--help", "", "-"])))
def test_present_names_are_kept(words: list[str]) -> None:
    once, _ = in_todays_words(words)
    assert in_todays_words(once) == (once, None)


def test_old_commands_work_with_a_warning(model: Path) -> None:
    added = qkedit("attach", "scr", "--layers", "0-1", "--model", model, "--json").document
    said = "`qkedit attach` is now `qkedit plugins add`; the old name works until version 1.0"
    assert (added["command"], added["warnings"]) == ("plugins add", [said])
    assert json.loads((model / "qkedit-plugins.json").read_bytes())["plugins"] == added["plugins"]
    listed = qkedit("plugins", model, "--json").document
    assert (listed["command"], listed["attached"], listed["warnings"]) == ("plugins list", added["plugins"], [])
    removed = qkedit("detach", "--model", model)
    assert removed.stdout == "Detached scr.\n"
    assert removed.stderr == (
        "warning: `qkedit detach` is now `qkedit plugins remove`; the old name works until version 1.0\n"
    )
    assert qkedit("plugins", "list", model).stderr == "", "a warning concerns one run only"


def test_the_old_flag_of_the_plot_works(tmp_path: Path) -> None:
    result = qkedit("kv-coherence", SMALL_DEMO, "--image", "none.png", "--picture", tmp_path / "keys.jpeg", "--json")
    assert result.document["warnings"] == ["--picture is now --plot; the old name works until version 1.0"]
    assert result.document["error"]["where"] == "--plot"


def test_help_and_errors_show_new_names_only() -> None:
    shown = qkedit("--help").stdout
    panel = shown[shown.index("Run it, with plug-ins") : shown.index("Measure what")]
    new = ["generate", "serve", "plugins", "kv-coherence", "attention"]
    assert [word for word in new if f"\n  {word} " in panel] == new
    assert not any(f"\n  {word} " in shown for word in RENAMED)
    assert "--picture" not in qkedit("kv-coherence", "--help").stdout
    wrong = qkedit("plugins", "add", "scr", "--model")
    assert (wrong.code, "see `qkedit plugins add --help`" in wrong.stderr) == (2, True)
    assert qkedit("plugins", "remove", "--json", "--modle").document["command"] == "plugins remove"


@pytest.mark.parametrize("key", ["attach", "plugins add", "plugins-add", "plugins_add"])
def test_a_section_may_have_the_old_or_the_new_name(model: Path, tmp_path: Path, key: str) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"{key}:\n  model: {model}\n  json: true\n")
    assert qkedit("plugins", "add", "scr", "--config", settings).document["plugins"][0]["name"] == "scr"
    # The section's `json` also holds for a command line that cannot be parsed.
    assert qkedit("plugins", "add", "scr", "--config", settings, "--model").document["status"] == "failed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "attach: {quiet: true}\nplugins add: {quiet: true}\n",
            "'attach' and 'plugins add' are sections of one command",
        ),
        ("plugins:\n  add: {quiet: true}\n", "write the section 'add' of 'plugins' as 'plugins add:' at the top"),
        ("plugins add: {layer: 1}\n", "no option 'layer' in the section plugins add"),
        ("plugins ad: {quiet: true}\n", "no command 'plugins ad'; did you mean 'plugins add'?"),
    ],
)
def test_invalid_sections_are_refused(model: Path, tmp_path: Path, text: str, said: str) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(text)
    result = qkedit("plugins", "add", "scr", "--model", model, "--config", settings)
    assert result.code == 2
    assert said in result.sentence()


def test_residual_on_the_command_line_means_retain(model: Path) -> None:
    request = ("steer", "--model", model, "--dry-run", "--json")
    for arguments in (("--residual", "0.5"), ("--residual=0.5",)):
        result = qkedit(*request, *arguments)
        assert result.document["options"]["retain"] == 0.5
        assert result.document["warnings"] == ["--residual is now --retain; the old name works until version 1.0"]
    for command in ("steer", "demo", "sweep"):
        assert "--residual" not in qkedit(command, "--help").stdout


def test_residual_in_the_environment_or_a_file_means_retain(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("residual: 0.25\n")
    request = ("steer", "--model", model, "--dry-run", "--json", "--config", settings)
    assert qkedit(*request).document["options"]["retain"] == 0.25
    assert qkedit(*request, "--retain", "0").document["options"]["retain"] == 0.0
    monkeypatch.setenv("QKEDIT_RESIDUAL", "0.5")
    assert qkedit(*request).document["options"]["retain"] == 0.5
    monkeypatch.setenv("QKEDIT_RETAIN", "0.125")
    result = qkedit(*request)
    assert result.code == 2
    assert "both say which share stays" in result.stdout
    assert qkedit(*request, "--retain", "0.375").document["options"]["retain"] == 0.375


def test_sweep_accepts_residual() -> None:
    assert "'half' cannot be read" in qkedit("sweep", "--residual", "half").stderr
