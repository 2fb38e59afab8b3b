"""Write a directory completely or not at all: it is staged next to its target and put in place by one rename.

While a run works on the target `edited`, there is one hidden directory next to it:

    .edited.qkedit/lock   locked while a run is alive, so a killed run never blocks the next
    .edited.qkedit/new    the output being written; after an exchange, the directory it replaced
    .edited.qkedit/old    the replaced directory in the middle of an exchange that is not atomic

It is removed when the run ends; after a kill, the next run to the same target takes the lock and clears it.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from qkedit.checkpoint.io.file_errors import explained, open_descriptor
from qkedit.checkpoint.io.interrupts import interrupts_deferred, list_clean_up, unlist_clean_up
from qkedit.checkpoint.io.lock import try_lock
from qkedit.checkpoint.io.rename import exchange, rename_to_absent, restore
from qkedit.checkpoint.io.target import locate, made_parents, refuse_existing, refuse_misplaced
from qkedit.errors import QkeditError

_FSYNC = "flush it to the disk"


class StagedDirectory:
    """A context manager for a directory that appears at `target` finished or not at all.

        with StagedDirectory(Path("edited"), overwrite=False) as staged:
            (staged.path / "config.json").write_text("{}")
            staged.commit()

    Leaving the block without `commit`, by any exception, removes the staged files and leaves the target unchanged.
    Readers of `target` never see a partial output. A process killed at any moment leaves the target absent, old or
    new, and nothing else that the next run does not clear.

    Args:
        target: the path of the directory; missing parents are created, and removed again without a commit.
        overwrite: whether to replace an earlier output, if it holds nothing else.
        force: whether to replace an existing directory, whatever it holds.
        sources: the directories that the run reads; the target must not be, contain or be inside one of them.

    Raises:
        UsageError: the target is unsuitable: it is not empty, is not a directory, contains a source …
        QkeditError: another run is writing to this target, or the target cannot be written to.
    """

    def __init__(self, target: Path, *, overwrite: bool, force: bool = False, sources: Sequence[Path] = ()) -> None:
        # Made absolute, so that a change of the working directory does not affect it.
        self._target = locate(target)
        self._overwrite = overwrite
        self._force = force
        self._sources = tuple(sources)
        self._workspace = self._target.parent / f".{self._target.name}.qkedit"
        self._old = self._workspace / "old"
        self._made_parents: list[Path] = []
        self._cleanup = ExitStack()

    @property
    def path(self) -> Path:
        """The staging directory on the target's file system, to write to until `commit`."""
        return self._workspace / "new"

    def __enter__(self) -> Self:
        """Take the lock, clear the remains of a killed run, and create the empty staging directory."""
        refuse_misplaced(self._target, self._sources)
        try:
            with interrupts_deferred():
                self._begin()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _begin(self) -> None:
        with ExitStack() as stack:
            self._made_parents = stack.enter_context(made_parents(self._target))
            stack.enter_context(_exclusive(self._workspace, self._target))
            stack.push(self._leave)
            with explained("clear the remains of an interrupted run", self._workspace):
                self._clear()
            refuse_existing(self._target, overwrite=self._overwrite, force=self._force)
            with explained("create a directory", self._target.parent):
                self.path.mkdir()
            self._cleanup = stack.pop_all()
        # An interrupt between this point and the block, or between the block and `__exit__`, skips `__exit__`.
        list_clean_up(self._cleanup.close)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the staged files unless they were committed, and release the lock."""
        with interrupts_deferred():
            unlist_clean_up(self._cleanup.close)
            self._cleanup.__exit__(kind, error, trace)

    def commit(self, *, fsync: bool = True) -> float:
        """Put the staged directory in place and remove the directory that it replaces.

        Args:
            fsync: whether to wait until the output is on the disk, so that a power failure cannot leave it incomplete.

        Returns:
            The seconds spent in fsync.

        Raises:
            UsageError: the target became unsuitable in the meantime.
            QkeditError: the system refused; the target is unchanged unless the message says otherwise.
        """
        seconds = _fsync_tree(self.path) if fsync else 0.0
        refuse_misplaced(self._target, self._sources)
        refuse_existing(self._target, overwrite=self._overwrite, force=self._force)
        with interrupts_deferred():
            with explained("put the finished directory in place", self._target):
                if self._target.exists():
                    exchange(self.path, self._target, spare=self._old)
                else:
                    rename_to_absent(self.path, self._target)
            if fsync:
                places = (self._target.parent, *(made.parent for made in self._made_parents))
                seconds += sum(_fsync(place, f"{_FSYNC}, though {self._target.name} is in place") for place in places)
            self._made_parents.clear()
            with explained("remove the replaced directory, though the new one is in place", self._workspace):
                self._clear()
        return seconds

    def _clear(self) -> None:
        """Empty the workspace from any state that a run can leave. Raises OSError."""
        restore(self._target, spare=self._old)
        _remove_tree(self.path)
        if os.path.lexists(self._old):
            # The target exists, so this is the replaced directory. It is renamed before its files are removed: a kill
            # must never leave a part of it under the name that `restore` trusts.
            os.rename(self._old, self.path)
            _remove_tree(self.path)

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with explained("remove the staging directory", self._workspace):
                self._clear()
        except QkeditError:
            if error is None:  # otherwise the first failure is the one to report; the next run clears the rest
                raise


@contextmanager
def _exclusive(workspace: Path, target: Path) -> Iterator[None]:
    """Hold the exclusive lock on writing to `target`; the workspace exists as long as the lock."""
    descriptor = _acquire(workspace, target)
    try:
        yield
    finally:
        # Removed before it is released: another run that opened the file finds in `_acquire` that it was unlinked.
        # A run that starts between these lines makes its own lock file, and so keeps the workspace.
        with suppress(OSError):
            (workspace / "lock").unlink()
            workspace.rmdir()
        with suppress(OSError):  # the lock file holds no data
            os.close(descriptor)


def _acquire(workspace: Path, target: Path) -> int:
    """Create and lock the lock file, and return its descriptor, without waiting for another run."""
    lock = workspace / "lock"
    with explained("look at", workspace):
        is_link = workspace.is_symlink()
    if is_link:
        raise QkeditError("is a symbolic link instead of a directory", where=str(workspace), remedy="remove it")
    while True:
        with explained("create a directory", target.parent), suppress(FileExistsError):
            # Only for this user: nobody else can read or change an output before it is finished.
            workspace.mkdir(mode=0o700)
        with explained("lock the directory against other runs", lock), ExitStack() as stack:
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                stack.callback(os.close, descriptor)
                if not try_lock(descriptor):
                    raise QkeditError(
                        "another run is writing to this directory",
                        where=str(target),
                        remedy="wait until it ends or choose another --out",
                    )
                if os.path.samestat(os.fstat(descriptor), os.lstat(lock)):
                    stack.pop_all()
                    return descriptor
            except FileNotFoundError:
                pass
        # Another run has just ended and removed the file, so a lock on it protects nothing: try again.


def _remove_tree(path: Path) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)


def _fsync_tree(directory: Path) -> float:
    """Flush every file and directory below `directory` to the disk, and return the seconds it took.

    One at a time: four files at once were not faster, since the disk is the limit.
    """

    def refuse(error: OSError) -> None:
        raise error

    with explained(_FSYNC, directory):
        written = [
            Path(folder, name)
            for folder, _, names in os.walk(directory, onerror=refuse)
            for name in (*names, "")  # the folder itself after its files
            if not os.path.islink(os.path.join(folder, name))  # the target of a link was not written here
        ]
    return sum(map(_fsync, written))


def _fsync(path: Path, doing: str = _FSYNC) -> float:
    start = time.perf_counter()
    with explained(doing, path), open_descriptor(path, os.O_RDONLY) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems do not support this for a directory, so there is nothing to wait for.
            if error.errno != errno.EINVAL or not path.is_dir():
                raise
    return time.perf_counter() - start
