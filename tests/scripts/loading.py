"""`scripts/` is no package, so that its files run by themselves; tests load one by its file name."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from tests.paths import ROOT

SCRIPTS = ROOT / "scripts"


def load_script(name: str) -> ModuleType:
    """Import `NAME.py`, wherever below `scripts/` it stands, as a module, without running its `main`."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", next(SCRIPTS.rglob(f"{name}.py")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def with_command_on_path(directory: Path) -> dict[str, str]:
    """Return an environment whose path has a `qkedit` in `directory`, and none of its settings."""
    command = directory / "bin" / "qkedit"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from qkedit.cli.app import run; run()" "$@"\n')
    command.chmod(0o755)
    return {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")} | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }
