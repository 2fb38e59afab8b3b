"""Test every failing system call: one sentence, an unchanged target, and no other files.

A run without faults shows which lines of qkedit make which call on the files of the test. Each of these calls then
fails once.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import qkedit
from qkedit.api.editing import steer
from qkedit.checkpoint.checkpoint import open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import QkeditError
from qkedit.steering.apply import apply_edits
from qkedit.steering.diff import diff
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.undo.revert import revert
from qkedit.steering.verify import verify
from tests.steering.checkpoints import MODULES, contents, weights, write

NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EMFILE, errno.EROFS)
CALLS: dict[str, tuple[Any, str]] = {
    name: (os, name)
    for name in (
        *("open", "close", "stat", "lstat", "fstat", "mkdir", "rename", "unlink", "rmdir", "listdir", "scandir"),
        *("pread", "pwrite", "ftruncate", "fsync", "copy_file_range", "link", "symlink", "statvfs"),
    )
    if hasattr(os, name)
} | {"flock": (fcntl, "flock"), "file": (builtins, "open"), "io file": (io, "open")}
ROOM = str(Path(qkedit.__file__).parent)

Site = tuple[str, str]  # the call, and the line of qkedit that makes it


class Faults:
    """Count qkedit's calls on the files of a test, and let one of them fail."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)
        self._lock = threading.Lock()
        self.met: dict[Site, int] = {}
        self.failing: Site | None = None
        self.number = 0
        self.failed = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Monitor every call while the context is open."""
        self.met, self.failed = {}, False
        with _patched(self._watched):
            yield

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            site = self._site(name, arguments)
            if site is not None and self._fails(site):
                if name == "close":  # the system does so even if it reports an error
                    real(*arguments, **options)
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments, **options)

        return call

    def _fails(self, site: Site) -> bool:
        with self._lock:
            self.met[site] = self.met.get(site, 0) + 1
            if site != self.failing or self.failed:
                return False
            self.failed = True
            return True

    def _site(self, name: str, arguments: tuple[Any, ...]) -> Site | None:
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(ROOM):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None or not self._concerns(arguments):
            return None
        file = os.path.relpath(frame.f_code.co_filename, ROOM)
        return name, f"{file}:{frame.f_lineno}"

    def _concerns(self, arguments: tuple[Any, ...]) -> bool:
        """Return whether the first argument is a file of the test, by name or descriptor."""
        if not arguments:
            return False
        try:
            path = os.readlink(f"/proc/self/fd/{arguments[0]}") if isinstance(arguments[0], int) else arguments[0]
            return os.fsdecode(path).startswith(self._place)
        except (OSError, TypeError):
            return False


@contextmanager
def _patched(watched: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    real = {name: getattr(module, attribute) for name, (module, attribute) in CALLS.items()}
    try:
        for name, (module, attribute) in CALLS.items():
            setattr(module, attribute, watched(name, real[name]))
        yield
    finally:
        for name, (module, attribute) in CALLS.items():
            setattr(module, attribute, real[name])


JOBS = (
    *("steer", "steer, linked", "steer, kept", "steer, delta", "steer, adapter"),
    *("apply", "merge", "interpolate", "export", "verify", "diff", "revert", "revert to another directory"),
)


def run_job(job: str, place: Path) -> None:
    """Run a command; an output replaces the one at `out`."""
    base, out = place / "base", place / "out"
    if job.startswith("steer"):
        how: Any = {
            "steer, linked": {"link": "hard"},
            "steer, kept": {"keep_original": True},
            "steer, delta": {"layout": "delta"},
            "steer, adapter": {"layout": "lora"},
        }.get(job, {})
        # transformers needs half a second to build the model class that names the modules.
        with patch("qkedit.checkpoint.query_modules.query_modules", lambda *_: MODULES):
            steer(base, out=out, layers="1", k=2, overwrite=True, verify=True, **how)
    elif job == "apply":
        edits = [place / "delta", place / "other"]
        apply_edits(edits, base=str(base), output=OutputOptions(out, overwrite=True, verify=True))
    elif job == "merge":
        qkedit.merge([place / "delta", place / "other"], base=base, out=out, overwrite=True)
    elif job == "interpolate":
        qkedit.interpolate(place / "delta", 0.5, base=base, out=out, overwrite=True)
    elif job == "export":
        with patch("qkedit.checkpoint.query_modules.query_modules", lambda *_: MODULES):
            qkedit.export(place / "delta", base=base, out=out, overwrite=True)
    elif job == "revert":
        revert(out, base=base)
    elif job == "revert to another directory":
        revert(place / "kept", out=out, overwrite=True)
    elif job == "verify":
        assert verify(place / "edited", base=str(base)).mismatches == ()
    else:
        diff(str(base), str(place / "edited"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to find files by descriptor")
    place = Path(os.path.realpath(tmp_path)) / "place"
    base = write(place / "base", weights())
    steer(base, out=place / "edited", layers="1", k=2, fsync=False)
    steer(base, out=place / "kept", layers="1", k=2, keep_original=True, fsync=False)
    steer(base, out=place / "delta", layers="1", k=2, layout="delta", fsync=False)
    steer(base, out=place / "other", layers="0-1", k=1, layout="delta", fsync=False)
    return place


@pytest.mark.parametrize("job", JOBS)
def test_any_failing_call_is_one_sentence(job: str, place: Path) -> None:
    earlier = place / "out"
    shutil.copytree(place / "edited", earlier)
    before = contents(place)
    faults = Faults(place)
    with faults.watching():
        run_job(job, place)
    sites = sorted(faults.met)
    after = contents(place)
    assert len(sites) >= 5
    wrong = []
    for turn, site in enumerate(sites):
        if contents(place) != before:
            shutil.rmtree(earlier)
            shutil.copytree(place / "edited", earlier)
        faults.failing, faults.number = site, NUMBERS[turn % len(NUMBERS)]
        ended = "well"
        with faults.watching():
            try:
                run_job(job, place)
            except QkeditError as error:
                ended = str(error)
            except Exception as error:
                ended = f"{type(error).__name__}: {error}"
                wrong.append((site, errno.errorcode[faults.number], ended))
        if ended.count("\n") or (ended != "well" and not ended.endswith(".")):
            wrong.append((site, errno.errorcode[faults.number], ended))
        found = contents(place)
        # A lock that could not be taken or removed may belong to another run; the next run removes it.
        found.pop(".out.qkedit/lock", None)
        if found not in ([after] if ended == "well" else [before, after]):
            left = sorted(set(contents(place)) ^ set(before))
            wrong.append((site, errno.errorcode[faults.number], f"{ended}; left {left}"))
            shutil.rmtree(place / ".out.qkedit", ignore_errors=True)
    assert not wrong, "\n".join(map(str, wrong))


def test_a_failing_call_while_a_model_is_opened_is_a_qkedit_error(place: Path) -> None:
    """Apart from reading tensors, `inspect` and `models` only open the files of a model."""
    faults = Faults(place)
    with faults.watching():
        open_checkpoint(resolve(str(place / "base"), None))
    for site in sorted(faults.met):
        faults.failing, faults.number = site, errno.EIO
        with faults.watching(), suppress(QkeditError):
            open_checkpoint(resolve(str(place / "base"), None))
