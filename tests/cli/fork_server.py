"""Import qkedit once, then run each order from standard input in a child process; see `Runs` in command.py.

Nothing is calculated with torch here before the fork: its threads do not survive one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any

# For the children, which would otherwise import them again each time.
import accelerate  # noqa: F401
import huggingface_hub.repocard_data  # noqa: F401
import numpy  # noqa: F401
import rich.console  # noqa: F401
import yaml  # noqa: F401

import qkedit.steering.engine.edited_weights
import qkedit.steering.run
import qkedit.steering.verify  # noqa: F401
from qkedit.cli.app import run
from qkedit.demo import SMALL_DEMO


def import_the_rest() -> None:
    """Import what commands import when they begin, by a dry run: half of what a run of the demo model takes."""
    sys.argv = ["qkedit", "steer", SMALL_DEMO, "--layers", "1", "--dry-run"]
    with redirect_stdout(StringIO()), suppress(SystemExit):
        run()


def run_child(order: dict[str, Any], outputs: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    for name, limit in order["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    sys.argv = ["qkedit", *order["arguments"]]
    code = 70
    try:
        run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    import_the_rest()
    while line := sys.stdin.readline():
        order = json.loads(line)
        children = []
        for outputs, environment in zip(order["outputs"], order["environments"], strict=True):
            child = os.fork()
            if not child:
                # A background job may inherit that these are ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                run_child(order, outputs, environment)
            children.append(child)
        print(*children, flush=True)
        # A child is reaped on request only: until then its id is not reused, so that signals reach no other process.
        sys.stdin.readline()
        print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)


if __name__ == "__main__":
    main()
