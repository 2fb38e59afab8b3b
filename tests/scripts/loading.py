"""`scripts/` is no package, so that its files run by themselves; tests load one by its file name."""

from __future__ import annotations

import importlib.util
import sys
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
