"""Test that rooms import only from lower rooms, without cycles: see docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import qkedit

PACKAGE = Path(qkedit.__file__).parent

# From top to bottom: a room imports from the rows below its own, never from its own row.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("report",),
    ("api",),
    ("laboratory",),
    ("evaluation", "serving", "integrations"),
    ("runtime",),
    ("inspection", "publishing"),
    ("steering",),
    ("plugins",),
    ("checkpoint", "spectral"),
    ("demo",),
)
# Narrower than the rows: these rooms import only the named rooms below them.
ONLY = {
    "plugins": {"checkpoint", "demo"},
    "publishing": {"steering", "checkpoint", "demo"},
    "steering": {"checkpoint", "spectral"},
    "serving": {"runtime", "plugins"},
    "spectral": set[str](),
    "demo": set[str](),
}
# The folders of single plug-ins: all in `plugins` except the interface and the engine.
OF_PLUGINS = tuple(
    f"qkedit.plugins.{path.parent.name}"
    for path in sorted(PACKAGE.glob("plugins/*/__init__.py"))
    if path.parent.name not in ("core", "transformers")
)
# Parts of rooms that must not import others: the interface of plug-ins no engine and no plug-in, a plug-in no other
# plug-in, files no families.
APART = {
    "qkedit.plugins.core": ("qkedit.plugins.transformers", *OF_PLUGINS),
    "qkedit.plugins.transformers": OF_PLUGINS,
    **{one: tuple(other for other in OF_PLUGINS if other != one) for one in OF_PLUGINS},
    "qkedit.checkpoint.io": ("qkedit.checkpoint.architecture",),
    "qkedit.evaluation.files": (
        "qkedit.evaluation.benchmarks",
        "qkedit.evaluation.statistics",
        "qkedit.evaluation.runs",
    ),
    "qkedit.evaluation.statistics": ("qkedit.evaluation.runs",),
    "qkedit.evaluation.benchmarks": ("qkedit.evaluation.statistics", "qkedit.evaluation.runs"),
    "qkedit.steering.engine": ("qkedit.steering.outputs",),
}
# Libraries that parts of the package do not import: mathematics no files, and the contract of plug-ins no engine. Its
# one exception, a function of transformers for sizes of images, is imported where it is called.
UNUSED = {
    "qkedit.spectral": {"os", "pathlib", "io", "shutil", "safetensors", "huggingface_hub", "transformers"},
    "qkedit.plugins.core": {"vllm", "accelerate"},
}
# Modules at the top that every room may use.
EVERYWHERE = {
    "configuration_files",
    "errors",
    "images",
    "other_packages",
    "prompts",
    "renamed",
    "selection",
    "stopwatch",
    "strict_text",
    "version",
}
# The limits of files per folder and lines per file, for readability.
MOST_FILES, MOST_LINES = 15, 330
HEAVY = {"torch", "transformers", "accelerate", "huggingface_hub", "matplotlib", "scipy", "nltk"}
# Rooms in which no file imports these at its top level: `--help` and `--dry-run` use them.
LIGHT = ("cli", "checkpoint")
# Tasks of a single module: a pattern of its source, and its name.
ONE_OF_EACH = {
    r"\bdifflib\b": "qkedit.errors",  # the known word that is similar to a misspelled one
    r"str\(error\).*\.splitlines\(\)\[0\]": "qkedit.errors",  # the first sentence of another library's error
    r"\bimport .*\bentry_points\b": "qkedit.other_packages",
    r"\bflock\(": "qkedit.checkpoint.io.lock",
    r"\.replace\(file\)|\bos\.replace\(": "qkedit.checkpoint.io.whole_file",
    r"\bclass \w*Stopwatch\b": "qkedit.stopwatch",
    r"json\.dumps\(.*\+ \"\\n\"": "qkedit.strict_text",
    r"\bxlogy\(": "qkedit.plugins.core.norm_entropy",
}
# Modules that must not import torch: they run while torch is being imported, or without any need of it.
WITHOUT_TORCH = (
    "qkedit",
    "qkedit.cli.app",
    "qkedit.steering.plan",
    "qkedit.steering.manifest",
    "qkedit.steering.engine.reading",
    "qkedit.steering.outputs.full",
    "qkedit.steering.outputs.delta",
    "qkedit.plugins.settings",
    "qkedit.evaluation.benchmarks.registry",
    "qkedit.evaluation.statistics.gate",
)


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(tree: ast.AST) -> set[str]:
    """Return the dotted names that the statements below `tree` import, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def trees() -> dict[str, ast.Module]:
    """Return every module's syntax tree."""
    return {name: ast.parse(file.read_text("utf-8")) for name, file in modules().items()}


@cache
def imports() -> dict[str, frozenset[str]]:
    """Return the imports of each module within the package, including those for types or inside functions."""
    return {name: frozenset(imported(tree) & modules().keys() - {name}) for name, tree in trees().items()}


def rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def below(room: str) -> set[str]:
    """Return the rooms that a room may import from."""
    if room in ONLY:
        return ONLY[room]
    floor = next(index for index, names in enumerate(FLOORS) if room in names)
    return {name for names in FLOORS[floor + 1 :] for name in names}


def test_the_plan_lists_every_room() -> None:
    planned = [room for floor in FLOORS for room in floor]
    assert sorted(planned) == rooms()
    assert set(ONLY) <= set(planned)
    assert {name for names in ONLY.values() for name in names} <= set(planned)


def test_the_plan_lists_every_top_level_module() -> None:
    at_the_top = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert at_the_top == EVERYWHERE


@pytest.mark.parametrize("room", rooms())
def test_rooms_import_only_from_lower_rooms(room: str) -> None:
    for module, names in imports().items():
        if room_of(module) == room:
            used = {room_of(name) for name in names}
            assert used <= below(room) | EVERYWHERE | {room, ""}, module
            assert "qkedit" not in names, f"{module} imports the package itself, which imports the rooms"


def test_there_are_no_import_cycles() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' → '.join(error.args[1])}")


def test_the_document_has_the_order_and_the_top_level_modules() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    order = re.search(r"(?m)^    cli → [^`]+?\n\n", text)
    assert order is not None
    told = tuple(tuple(map(str.strip, floor.split(","))) for floor in order[0].split("→"))
    assert told == FLOORS
    listed = re.search(r"(?s)modules\s+that\s+every\s+room\s+may\s+use:(.*?)\n\n", text)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == EVERYWHERE
    drawn = re.search(r"(?s)```\nqkedit/\n(.*?)\nconfigs/", text)
    assert drawn is not None
    assert sorted(re.findall(r"(?m)^  (\w+)/ ", drawn[1])) == rooms()


@pytest.mark.parametrize("part", UNUSED)
def test_parts_do_not_import_excluded_libraries(part: str) -> None:
    for module, tree in trees().items():
        if f"{module}.".startswith(f"{part}."):
            used = {name.split(".")[0] for name in imported(tree)}
            assert not used & UNUSED[part], module


def test_separated_parts_do_not_import_each_other() -> None:
    for part, strangers in APART.items():
        assert part in modules()
        for stranger in strangers:
            assert stranger in modules(), f"there is no {stranger} any more"
        for module, names in imports().items():
            if f"{module}.".startswith(f"{part}."):
                met = [name for name in names if any(f"{name}.".startswith(f"{other}.") for other in strangers)]
                assert not met, module


def folders() -> Iterator[Path]:
    yield from (file.parent for file in PACKAGE.rglob("__init__.py"))


def test_folders_and_files_are_within_the_limits() -> None:
    for folder in folders():
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= MOST_FILES, folder
    for file in modules().values():
        assert len(file.read_text("utf-8").splitlines()) <= MOST_LINES, file


@pytest.mark.parametrize("room", LIGHT)
def test_rooms_of_help_and_dry_run_import_no_heavy_library(room: str) -> None:
    for module, tree in trees().items():
        if room_of(module) != room:
            continue
        top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        top.body = [node for node in top.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
        assert not {name.split(".")[0] for name in imported(top)} & HEAVY, module


@pytest.mark.parametrize("what", ONE_OF_EACH)
def test_each_single_task_has_one_module(what: str) -> None:
    where = {name for name, file in modules().items() if re.search(what, file.read_text("utf-8"))}
    assert where == {ONE_OF_EACH[what]}


def test_functions_do_not_import_submodules_of_torch() -> None:
    """While another thread imports torch, `from torch.distributed import …` may run on a part of it, and abort."""
    parts = [
        f"{module}:{node.lineno}"
        for module, tree in sorted(trees().items())
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.")
    ]
    assert parts == []


def test_modules_without_torch_do_not_import_it() -> None:
    script = (
        "import sys\n"
        "from importlib import import_module\n"
        f"for name in {WITHOUT_TORCH}:\n"
        "    import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
