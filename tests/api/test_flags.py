"""Test that every flag of a command that computes something has an argument in Python."""

from __future__ import annotations

import inspect

import pytest

import qkedit
from qkedit.cli.application import made_command
from qkedit.cli.command_table import COMMANDS, GLOBAL_FLAGS

# Commands without a result: they print records, change a file, or serve until they are stopped. `models --check`
# prints `plan(…).stack`.
WITHOUT = {"models", "serve", "plugins add", "plugins remove", "plugins list"}
FUNCTIONS = {
    "inspect": (qkedit.inspect, qkedit.suggest, qkedit.compare_spectra),
    "verify": (qkedit.verify, qkedit.verify_endpoint),
    "diff": (qkedit.diff, qkedit.extract),
    "demo": (qkedit.demonstrate,),
    "eval": (qkedit.evaluate, qkedit.evaluate_arms, qkedit.evaluate_endpoint),
    "kv-coherence": (qkedit.kv_coherence,),
}
# Flags with another name in Python, where several values are one sequence.
RENAMED = {
    "plugin": "plugins",
    "edit": "edits",
    "split": "splits",
    "image": "images",
    "endpoint_model": "served_name",
    "parser": "rule",
    "variant": "rule",
    "normalise": "rule",
    "questions": "data",
    "argument": "model",
}
ALTERNATIVES = {
    "k": "ks",
    "energy": "energies",
    "channel": "channels",
    "retain": "retains",
    "product": "products",
    "protect": "protects",
    "spare": "spares",
}
# Flags for additional output, and old names.
SHOWN = {"detail", "csv", "plot", "html", "markdown", "per_item", "save", "residual", "picture", "write_truth"}
# Flags that correspond to another function in Python, or to a missing argument.
OTHERWISE = {
    "steer": {"dry_run": "qkedit.plan"},
    "inspect": {
        "suggest": "qkedit.suggest",
        "compare": "the models of qkedit.compare_spectra",
        "base": "the models of qkedit.compare_spectra",
        "allow_text_only": "always",
    },
    "diff": {"extract": "qkedit.extract"},
    "export": {"form": "there is one format"},
    "generate": {"compare": "call it several times", "base": "call it several times"},
    "kv-coherence": {"layer": "the layer of the plot"},
    "eval": {
        "each": "qkedit.evaluate_arms",
    },
    "attention": {"limit": "give fewer images"},
    "drift": {"limit": "give fewer images", "model": "edited"},
    "tune": {"control": "controls"},
}
# Arguments that `**loading` passes on in addition to those of `load`, by the functions' docstrings.
PASSED_ON = {"drift": {"prompt", "base_revision"}, "attention": {"prompt"}}
# Functions without such an argument run within `qkedit.using_architectures`.
WITHIN_A_BLOCK = {"architectures"}


def parameters(command: str) -> set[str]:
    """Return the arguments of a command's functions, with those of `load` where they are passed on."""
    functions = FUNCTIONS.get(command) or (getattr(qkedit, command),)
    found = {name for function in functions for name in inspect.signature(function).parameters}
    if "loading" in found:
        found |= set(inspect.signature(qkedit.load).parameters) | PASSED_ON.get(command, set())
    return found


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT])
def test_every_flag_has_an_argument(command: str) -> None:
    known = parameters(command) | WITHIN_A_BLOCK
    flags = {
        str(option.name)
        for option in made_command(command).params
        if any(text.startswith("--") for text in option.opts) and f"--{option.name}" not in GLOBAL_FLAGS
    } - {"help"}
    missing = {
        flag
        for flag in flags - SHOWN - set(OTHERWISE.get(command, ()))
        if not {flag, RENAMED.get(flag, flag), ALTERNATIVES.get(flag, flag)} & known
    }
    assert missing == set()


def test_the_exceptions_are_flags() -> None:
    for command, exceptions in OTHERWISE.items():
        flags = {str(option.name) for option in made_command(command).params}
        assert exceptions.keys() <= flags, command
