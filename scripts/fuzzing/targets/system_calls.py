"""Target for faults of the operating system: one call of a run fails with an error number."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest.mock import patch

from fuzzing import seeds
from fuzzing.commands import command, judged
from fuzzing.sandbox import Sandbox
from fuzzing.target import Finding, Outcome, Target
from qkedit.steering.verify import verify
from tests.cli.command import qkedit

CALLS = (
    "open", "close", "read", "write", "pread", "preadv", "pwrite", "pwritev", "fsync", "fdatasync", "ftruncate",
    "posix_fallocate", "copy_file_range", "sendfile", "rename", "replace", "mkdir", "rmdir", "unlink", "link",
    "symlink", "stat", "lstat", "fstat", "scandir", "listdir", "statvfs", "chmod", "utime", "lseek",
)  # fmt: skip
NUMBERS = (
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EACCES,
    errno.EPERM, errno.ENOENT, errno.ENOMEM, errno.EINVAL, errno.EBUSY, errno.ENOTSUP, errno.EXDEV, errno.EFBIG,
)  # fmt: skip
LINES = (
    "steer base --layers all --k 2 --out out --device cpu",
    "steer base --layers all --k 2 --out out --device cpu --layout delta",
    "steer base --layers all --k 2 --out out --device cpu --link copy --overwrite",
    "apply delta --base base --out out",
    "verify edited --base base",
    "diff base edited",
    "inspect base --layers 0-1 --csv spectra.csv",
    "inspect base --layers 0-1 --html page.html",
)
# The working directory of steer and apply, and the calls that are needed to remove it.
STAGING = ".out.qkedit"
CLEARING = ("rmdir", "unlink", "scandir", "listdir", "lstat", "stat", "fstat", "open", "close", "rename")
TARGETS = ("out", "spectra.csv", "page.html")


@dataclass(frozen=True)
class Fault:
    """The fault of a function in its call number `at`."""

    line: str
    call: str
    at: int
    number: int


class SystemCalls(Target):
    """Runs a command with one fault: it must end with an output that verifies, or with one sentence and no files."""

    name = "system-calls"
    subject = "errors of the operating system in any call of steer, apply, verify, diff and inspect"
    seconds = 60.0

    def prepare(self) -> None:
        """Build a base, an output and a delta, and run every command once, so that all modules are imported."""
        base = seeds.checkpoint(self.work / "base")
        seeds.steer(base, self.work / "edited")
        seeds.steer(base, self.work / "delta", "delta")
        for line in LINES:
            self._run(line)

    def generate(self, random: Random) -> Fault:
        """Choose a command, a call and an error."""
        at = random.choice((1, 1, 2, 3, 5, 8, 13, random.randrange(1, 60)))
        return Fault(random.choice(LINES), random.choice((*CALLS, "io.open")), at, random.choice(NUMBERS))

    def check(self, given: Fault) -> Outcome:
        """Run the command; a fault that does not occur counts as accepted."""
        return self._run(given.line, given)

    def _run(self, line: str, fault: Fault | None = None) -> Outcome:
        sandbox = Sandbox(self.work / "case")
        here = sandbox.directory
        for name in ("base", "edited", "delta"):
            (here / name).symlink_to(self.work / name)
        sandbox.remember()
        names = ("base", "edited", "delta", *TARGETS)
        words = [str(here / word) if word in names else word for word in line.split(" ")]
        with failing(fault):
            result = qkedit(*words)
        outcome = judged(result)
        out, staging = here / "out", here / STAGING
        # An error after the rename says that the output is in place; it must verify below.
        complete = out.exists() and "is in place" in result.stderr
        if outcome is Outcome.REFUSED and not complete and any((here / name).exists() for name in TARGETS):
            raise Finding("partial", "refused, but the target is there")
        if fault is not None and fault.call in CLEARING and staging.exists():
            # The next run removes files that could not be removed.
            again = [] if "--overwrite" in words or not out.exists() else ["--overwrite"]
            if command(*words, *again) is not Outcome.ACCEPTED:
                raise Finding("partial", "the next run fails too")
        sandbox.check(*(here / name for name in TARGETS))
        if out.exists() and (mismatches := verify(out, base=str(self.work / "base")).mismatches):
            raise Finding("partial", f"the output does not verify: {mismatches[:3]!a}")
        return outcome


@contextmanager
def failing(fault: Fault | None) -> Iterator[None]:
    """Let one call fail while the context is open."""
    if fault is None:
        yield
        return
    left = fault.at
    with ExitStack() as stack:

        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    if fault.call == "close":
                        real(*arguments, **keywords)  # the system closes the file nevertheless
                    name = next((word for word in arguments if isinstance(word, str | os.PathLike)), None)
                    raise OSError(fault.number, os.strerror(fault.number), name)
                return real(*arguments, **keywords)

            return call

        if fault.call == "io.open":
            for module in (io, builtins):
                stack.enter_context(patch.object(module, "open", wrapped(module.open)))
        elif hasattr(os, fault.call):
            stack.enter_context(patch.object(os, fault.call, wrapped(getattr(os, fault.call))))
        yield
