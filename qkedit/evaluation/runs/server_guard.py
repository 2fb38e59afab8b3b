"""Run a server until it ends or standard input is closed, and leave no process of it: `server_guard.py COMMAND…`.

A process of its own, since a run that is killed cannot stop its server any more: the system closes the pipe to this
process, whichever way the run ends. It imports nothing of qkedit, so that it starts at once.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

# Seconds that a server has to end by itself.
PATIENCE = 20.0
_BETWEEN = 0.2


def guard(command: Sequence[str]) -> int:
    """Run a command, and return its exit code; end its whole process group when standard input is closed."""
    signal.signal(signal.SIGTERM, _leave)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    try:
        while server.poll() is None and not _is_closed():
            pass
        if server.poll() is None:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(PATIENCE)
    finally:
        # The workers of a server that failed may still run.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    return server.wait()


def _is_closed() -> bool:
    """Wait a moment, and return whether the other end of standard input is closed."""
    readable, _, _ = select.select([sys.stdin], [], [], _BETWEEN)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) == b""


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]) % 256)
