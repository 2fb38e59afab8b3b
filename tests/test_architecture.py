"""The rooms of the house import one another downwards only, as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qkedit

PACKAGE = Path(qkedit.__file__).parent

# Which rooms each room may import from, besides itself and the modules at the top.
MAY_IMPORT = {
    "cli": {
        "report",
        "laboratory",
        "steering",
        "evaluation",
        "serving",
        "plugins",
        "checkpoint",
        "spectral",
        "demo",
    },
    "laboratory": {"steering", "evaluation", "serving", "plugins", "checkpoint", "spectral", "demo"},
    "report": {"laboratory", "steering", "evaluation", "checkpoint"},
    "evaluation": {"serving", "plugins", "checkpoint", "demo"},
    "steering": {"checkpoint", "spectral"},
    "serving": {"plugins", "checkpoint", "demo"},
    "plugins": {"checkpoint", "demo"},
    "checkpoint": {"demo"},
    "spectral": set(),
    "demo": set(),
}
TOP = {"errors", "configuration_files", "images", "prompts", "selection", "strangers_text"}
# Where no file may import these at its top: `--help` and `--dry-run` pass here.
LIGHT = ("cli", "checkpoint")
HEAVY = {"torch", "transformers", "accelerate", "huggingface_hub", "matplotlib", "scipy", "nltk"}


# Nobody else calls `from_pretrained`, which would offer to run a stranger's code.
LOADS_PRETRAINED = PACKAGE / "checkpoint" / "pretrained.py"


def imported(module: ast.AST) -> set[str]:
    """The dotted names that the statements below `module` import, wherever they stand."""
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_every_room_is_known() -> None:
    assert set(rooms()) <= set(MAY_IMPORT)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_downwards_only(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        names = imported(ast.parse(file.read_text("utf-8")))
        used = {name.split(".")[1] for name in names if name.startswith("qkedit.")}
        assert used <= MAY_IMPORT[room] | TOP | {room}, file


@pytest.mark.parametrize("room", LIGHT)
def test_what_help_and_dry_run_pass_imports_nothing_heavy(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        top.body = [node for node in top.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
        assert not {name.split(".")[0] for name in imported(top)} & HEAVY, file


def test_one_place_loads_what_is_pretrained() -> None:
    loads = {
        file
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
    }
    assert loads == {LOADS_PRETRAINED}
