"""Run the command line, in this process or in a child of a process that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qkedit.cli.app import run
from tests.paths import ROOT


@dataclass(frozen=True)
class Result:
    """The exit code and output of a run."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        return json.loads(self.stdout)

    def sentence(self) -> str:
        """Return the error, after checking that it is one line and the only output."""
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("error: ")
        assert lines[0].endswith((".", "?"))
        assert not lines[0].endswith(("..", "?."))
        return lines[0].removeprefix("error: ")


def qkedit(*arguments: str | Path, encoding: str = "utf-8") -> Result:
    """Run the command in this process, with standard streams of an encoding."""
    streams = [TextIOWrapper(BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    with (
        patch.object(sys, "argv", ["qkedit", *map(str, arguments)]),
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
    ):
        try:
            run()
        except SystemExit as leaving:
            code = leaving.code
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    assert isinstance(code, int)
    return Result(code, *texts)


class Runs:
    """Start children of a process that has imported qkedit and torch, so that runs start at once."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self._process = process
        self._children: list[int] = []
        self._directory = directory

    def start(
        self,
        *arguments: str | Path,
        limits: Mapping[str, int] | None = None,
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        """Start `qkedit ARGUMENTS` under resource limits such as {"FSIZE": 1000}, once for each environment."""
        outputs = [self._outputs(number) for number in range(len(environments))]
        for path in (path for paths in outputs for path in paths):
            path.unlink(missing_ok=True)
        order = {
            "arguments": [str(argument) for argument in arguments],
            "outputs": [list(map(str, paths)) for paths in outputs],
            "environments": list(map(dict, environments)),
            "limits": limits or {},
        }
        self._children = list(map(int, self._ask(json.dumps(order)).split()))

    def signal(self, number: signal.Signals, which: int = 0) -> None:
        """Send a signal to one of the runs that were started last; it may have ended."""
        os.kill(self._children[which], number)

    def standard_error(self, which: int = 0) -> str:
        """Return what one of the runs has written to standard error so far."""
        path = self._outputs(which)[1]
        return path.read_text() if path.exists() else ""

    def finish(self) -> Result:
        """Wait until the run ends; the code of a killed run is the negative signal."""
        return self.finish_all()[0]

    def finish_all(self) -> list[Result]:
        """Wait until all runs of one start have ended."""
        codes = list(map(int, self._ask("finish").split()))
        self._children = []
        return [
            Result(code, *(path.read_text() if path.exists() else "" for path in self._outputs(number)))
            for number, code in enumerate(codes)
        ]

    def _outputs(self, number: int) -> list[Path]:
        return [self._directory / f"{name} {number}" for name in ("stdout", "stderr")]

    def abandon(self) -> None:
        """End the run and its parent, after a failure.

        Orders and replies alternate. Without an end, this run's exit code would be read as the next run's id, and a
        signal to 0 or -1 ends every process.
        """
        for child in self._children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()

    def __call__(self, *arguments: str | Path, limits: Mapping[str, int] | None = None) -> Result:
        """Start a run and wait for its end."""
        self.start(*arguments, limits=limits)
        return self.finish()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextmanager
def runs(directory: Path, environment: Mapping[str, str] | None = None) -> Iterator[Runs]:
    """Start the process with an environment, by default that of this process."""
    server = [sys.executable, "-m", "tests.cli.fork_server"]
    with subprocess.Popen(
        server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        yield Runs(process, directory)
        assert process.stdin is not None
        process.stdin.close()
