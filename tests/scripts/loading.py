"""Load or run a script by its file name: `scripts/` is not a package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from tests.cli.command import Result, qkedit
from tests.paths import ROOT

SCRIPTS = ROOT / "scripts"


def load_script(name: str) -> ModuleType:
    """Import `NAME.py` from any folder of `scripts/` as a module, without running its `main`."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", next(SCRIPTS.rglob(f"{name}.py")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


OWN_PROCESS = f"""#!/bin/sh
exec {sys.executable} -c 'from qkedit.cli.app import run; run()' "$@"
"""

# Commands are sent through one pipe and results through another: a script waits for each command.
THIS_PROCESS = f"""#!{sys.executable} -SE
import json, os, sys
order = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "directory": os.getcwd()}}
with open(int(os.environ["ORDERS"]), "w") as orders, open(int(os.environ["RESULTS"]), closefd=False) as results:
    print(json.dumps(order), file=orders, flush=True)
    code, stdout, stderr = json.loads(results.readline())
sys.stdout.write(stdout)
sys.stderr.write(stderr)
sys.exit(code)
"""


def with_command_on_path(directory: Path, text: str = OWN_PROCESS) -> dict[str, str]:
    """Return an environment without qkedit's settings, with a `qkedit` in `directory` on the path."""
    command = directory / "bin" / "qkedit"
    command.parent.mkdir(exist_ok=True)
    command.write_text(text)
    command.chmod(0o755)
    return {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")} | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }


def run_script(name: str, directory: Path, settings: Mapping[str, str]) -> Result:
    """Run a shell script in `directory`; each `qkedit` in it runs in this process, which has imported everything.

    Args:
        name: the name of the file in `scripts/`.
        directory: the working directory of the script.
        settings: its environment variables, in addition to those of this process that are not settings of qkedit.
    """
    ours = ("MODEL", "LAYERS", "K", "OUT", "ARTEFACTS", "BASE")
    kept = {name: value for name, value in with_command_on_path(directory, THIS_PROCESS).items() if name not in ours}
    taken, ordered = os.pipe()
    answered, given = os.pipe()
    pipes = {"ORDERS": str(ordered), "RESULTS": str(answered)}
    outputs = [directory / "bin" / stream for stream in ("stdout", "stderr")]
    with (
        outputs[0].open("w") as stdout,
        outputs[1].open("w") as stderr,
        open(taken) as orders,
        open(given, "w") as results,
    ):
        try:
            script = subprocess.Popen(
                ["sh", SCRIPTS / name],
                cwd=directory,
                env=kept | pipes | dict(settings),
                stdout=stdout,
                stderr=stderr,
                pass_fds=(ordered, answered),
            )
        finally:
            os.close(ordered)
            os.close(answered)
        with script:
            try:
                for line in orders:  # until the script and its child processes have ended
                    order = json.loads(line)
                    with patch.dict(os.environ, order["environment"], clear=True), chdir(order["directory"]):
                        result = qkedit(*order["arguments"])
                    print(json.dumps([result.code, result.stdout, result.stderr]), file=results, flush=True)
            except BaseException:
                script.kill()  # it would wait for a result for ever
                raise
    return Result(script.returncode, *(output.read_text() for output in outputs))
