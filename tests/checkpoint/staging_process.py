"""A process that writes outputs and may be killed at any moment; run as a script by test_staging.py.

    staging_process.py write TARGET STEP [plain]   write generation 2, and be killed before file operation STEP
    staging_process.py repeat TARGET 0 [plain]     write generation after generation until killed
    staging_process.py hold TARGET 0 [plain]       stop half-way through generation 2 and wait

`plain` takes away the system's atomic exchange. "ready" on stdout says that the work begins.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

from qkedit.checkpoint import rename
from qkedit.checkpoint.staging import StagedDirectory

FILES = ("qkedit.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "chat/template.txt")

# What CPython reports of the calls that change a file system, before it makes them.
CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"})


def write_output(directory: Path, generation: int) -> None:
    (directory / "chat").mkdir()
    for name in FILES:
        (directory / name).write_bytes(b"%d\n" % generation * 5000)


def read_generation(directory: Path) -> int | None:
    """Return the generation a directory holds, None if it is absent; fails if it is anything but complete."""
    if not directory.exists():
        return None
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    assert set(found) == set(FILES)
    contents = {path.read_bytes() for path in found.values()}
    assert len(contents) == 1, "files of different generations"
    lines = contents.pop().split()
    assert len(lines) == 5000, "a file that was cut off"
    assert len(set(lines)) == 1
    return int(lines[0])


def die_before(step: int) -> None:
    """Kill this process as by `kill -9` when it is about to make file operation number `step`."""
    operations = count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES and next(operations) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(work: str, target: Path, step: int, plain: bool) -> None:
    if plain:
        rename._renameat2 = lambda *_: False
    print("ready", flush=True)
    if work == "write":
        die_before(step)
    for generation in count(2):
        with StagedDirectory(target, overwrite=True) as staged:
            write_output(staged.path, generation)
            if work == "hold":
                print("held", flush=True)
                time.sleep(60)
            staged.commit(fsync=work == "write")
        if work == "write":
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), "plain" in sys.argv[4:])
