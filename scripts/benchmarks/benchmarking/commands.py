"""Run whole commands as processes of their own: qkedit's, `cp -r`, and another tool's."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarking.disk import CacheState, files_below, fsync_below, settle
from benchmarking.results import CommandRun
from benchmarking.timing import seconds_of

_CHILD = Path(__file__).with_name("child.py")


class CommandFailedError(Exception):
    """A measured command failed; the message ends with its output."""


@dataclass(frozen=True)
class Request:
    """The edit to measure, and the directories to use.

    Attributes:
        model: the checkpoint's directory.
        work: an existing directory; everything is written into it and removed again.
        threads: the number of threads of the mathematics, in every process.
    """

    model: Path
    work: Path
    layers: str
    k: int
    device: str
    threads: int
    cache: CacheState

    @property
    def output(self) -> Path:
        """The path to which one full directory at a time is written."""
        return self.work / "output"

    @property
    def delta(self) -> Path:
        """The path to which a delta is written."""
        return self.work / "delta"


def run_function(
    function: str, arguments: list[str], threads: int, interpreter: str = sys.executable
) -> tuple[CommandRun, str]:
    """Run `module:function` in a process of its own, and return the run and its output.

    Raises:
        CommandFailedError: its exit code is not 0.
    """
    # The user's environment variables for qkedit must not change the measurement.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QKEDIT_")}
    # A user's Python keeps its bytecode; compiling all modules again would take most of a short command's time.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder, "peak")
        command = [interpreter, str(_CHILD), str(peak), function, *arguments]
        cpu, started = _cpu_of_children(), time.perf_counter()
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds, cpu = time.perf_counter() - started, _cpu_of_children() - cpu
        if process.returncode:
            said = (process.stderr + process.stdout).strip()[-2000:]
            raise CommandFailedError(f"{function} {' '.join(arguments)} failed with {process.returncode}: {said}")
        return CommandRun(seconds, peak_bytes=int(peak.read_text()), cpu_seconds=cpu), process.stdout


def _cpu_of_children() -> float:
    """Return the CPU seconds, user and system, of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def qkedit(arguments: list[str], threads: int) -> CommandRun:
    """Run one command of qkedit's command line."""
    return run_function("qkedit.cli.app:run", arguments, threads)[0]


def qkedit_writing(arguments: list[str], threads: int) -> CommandRun:
    """Run `steer` or `apply`, which report the seconds of their stages."""
    run, printed = run_function("qkedit.cli.app:run", [*arguments, "--json"], threads)
    report = json.loads(printed)
    inside = report["seconds"]
    return replace(run, fsync=inside["fsync"], inside=inside, bytes_written=report["bytes_in_output"])


def copy_directory(request: Request) -> CommandRun:
    """Run `cp -r` of the checkpoint, then fsync of the copy."""
    settle(request.model, request.cache)
    copying = seconds_of(lambda: subprocess.run(["cp", "-r", request.model, request.output], check=True))
    fsync = seconds_of(lambda: fsync_below(request.output))
    written = sum(file.stat().st_size for file in files_below(request.output))
    shutil.rmtree(request.output)
    return CommandRun(copying + fsync, fsync, bytes_written=written)


def steer_and_verify(request: Request) -> dict[str, CommandRun]:
    """Run `steer` to a full directory, then `verify` of it against the checkpoint."""
    settle(request.model, request.cache)
    steered = qkedit_writing([*steer_arguments(request), "--out", str(request.output)], request.threads)
    verified = qkedit(["verify", str(request.output), "--base", str(request.model)], request.threads)
    shutil.rmtree(request.output)
    return {"steer": steered, "verify": verified}


def steer_delta_and_apply(request: Request) -> dict[str, CommandRun]:
    """Run `steer` to a delta, then `apply` of it to a full directory."""
    settle(request.model, request.cache)
    out = ["--layout", "delta", "--out", str(request.delta)]
    steered = qkedit_writing([*steer_arguments(request), *out], request.threads)
    settle(request.model, request.cache)
    base = ["--base", str(request.model), "--out", str(request.output)]
    applied = qkedit_writing(["apply", str(request.delta), *base], request.threads)
    shutil.rmtree(request.delta)
    shutil.rmtree(request.output)
    return {"steer delta": steered, "apply": applied}


def dry_run(request: Request) -> CommandRun:
    """Run `steer --dry-run`: start-up, headers and config."""
    return qkedit([*steer_arguments(request), "--dry-run", "--out", str(request.output)], request.threads)


def help_page(request: Request) -> CommandRun:
    """Run `qkedit --help`: start-up alone."""
    return qkedit(["--help"], request.threads)


def import_torch(request: Request) -> CommandRun:
    """Run `import torch`, which every program with torch has to wait for."""
    return run_function("torch:get_num_threads", [], request.threads)[0]


def steer_arguments(request: Request) -> list[str]:
    """Return the arguments of the measured `steer` command, without its output."""
    edit = ["--layers", request.layers, "--k", str(request.k), "--device", request.device]
    return ["steer", str(request.model), *edit]
