"""A process that writes outputs and may be killed at any moment; run as a script by test_staging_kills.py.

    staging_process.py write TARGET STEP [plain]   write generation 2, and be killed before file operation STEP
    staging_process.py interrupt TARGET STEP       write generation 2, and be sent Ctrl-C before operation STEP
    staging_process.py again TARGET STEP           the same, and be sent SIGTERM before every later operation
    staging_process.py repeat TARGET 0 [plain]     write generation after generation until killed
    staging_process.py hold TARGET 0 [plain]       stop half-way through generation 2 and wait

`plain` disables the system's atomic exchange. The process prints "ready" when the work begins.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

from qkedit.checkpoint.io import rename
from qkedit.checkpoint.io.staging import StagedDirectory
from tests.checkpoint.outputs import write_output

# Audit events with which CPython announces calls that change a file system.
CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"})


def die_before(step: int) -> None:
    """Kill this process as by `kill -9` when it is about to make file operation number `step`."""
    operations = count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES and next(operations) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def interrupt_before(step: int, *, again: bool) -> None:
    """Send this process the signals of Ctrl-C or of a scheduler, at the same points as `die_before`."""
    operations = count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES:
            number = next(operations)
            if number == step:
                os.kill(os.getpid(), signal.SIGINT)
            elif again and number > step:
                os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(hook)


def interrupt(*_: object) -> None:
    """Treat SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


def main(work: str, target: Path, step: int, plain: bool) -> None:
    if plain:
        rename._renameat2 = lambda *_: False
    # A process that a shell script starts in the background ignores Ctrl-C by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("ready", flush=True)
    if work == "write":
        die_before(step)
    if work in ("interrupt", "again"):
        signal.signal(signal.SIGTERM, interrupt)
        interrupt_before(step, again=work == "again")
    for generation in count(2):
        with StagedDirectory(target, overwrite=True) as staged:
            write_output(staged.path, generation)
            if work == "hold":
                print("held", flush=True)
                time.sleep(60)
            staged.commit(fsync=work == "write")
        if work in ("write", "interrupt", "again"):
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), "plain" in sys.argv[4:])
