"""Run copies in threads during other work, and stop them when that work fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from threading import Event
from types import TracebackType
from typing import Self

from qkedit.checkpoint.io.copying import OnBytes
from qkedit.checkpoint.io.interrupts import interrupts_deferred, list_clean_up, unlist_clean_up

# A copy occupies one core, at about 2 GB/s: on 2 idle cores two copies took 0.85 of the time of one, and during other
# work they get a larger share. More copies would only fill a disk's queue.
COPIES_AT_ONCE = 2

CopyJob = Callable[[OnBytes], object]
"""One copy, ready to run: `functools.partial(copy_file, source, destination, size, link)`."""


class BackgroundCopy:
    """Copies that run in their own threads, from the start of the block.

        with BackgroundCopy(jobs, on_bytes) as copying:
            …
            copying.wait_for("model-00002-of-00005.safetensors")
            …
        # here every job is done; or the block raised, and the threads have stopped

    The system calls of a copy release Python's lock, so the copies can use other cores. After the first failure, no
    further copy begins.

    Args:
        jobs: the copies, by the name of the file they write, in the order in which they begin.
        on_bytes: called from the copying threads.
        threads: the number of concurrent copies.
    """

    def __init__(self, jobs: Mapping[str, CopyJob], on_bytes: OnBytes, threads: int = COPIES_AT_ONCE) -> None:
        self._jobs = jobs
        self._on_bytes = on_bytes
        self._threads = threads
        self._stopped = Event()
        self._started = time.perf_counter()
        self._copies: dict[str, Future[float]] = {}

    def __enter__(self) -> Self:
        """Start the copies."""
        with interrupts_deferred():
            # An interrupt may skip `__exit__`, and the files must not be removed while threads create more of them.
            list_clean_up(self.cancel)
            executor = ThreadPoolExecutor(self._threads, thread_name_prefix="qkedit-copy")
            self._started = time.perf_counter()
            for name, job in self._jobs.items():
                self._copies[name] = executor.submit(self._run, job)
            executor.shutdown(wait=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the copies, or stop them if the block or the wait was interrupted."""
        try:
            if error is None:
                self.join()
        finally:
            self.cancel()
            unlist_clean_up(self.cancel)

    def check(self) -> None:
        """Raise the error of a copy that has failed, as `wait_for` does; otherwise return immediately."""
        if self._stopped.is_set():
            self.join()

    def wait_for(self, name: str) -> None:
        """Wait for the file `name`; return immediately if it has no job.

        Raises:
            QkeditError: the failure that stopped the copies.
            concurrent.futures.CancelledError: `cancel` stopped them.
        """
        if name in self._copies:
            wait([self._copies[name]])
            self.check()

    def join(self) -> float:
        """Wait for the last copy, and return the seconds since the start of the first; raises as `wait_for` does."""
        wait(self._copies.values())
        failures = [error for copy in self._copies.values() if (error := copy.exception()) is not None]
        # A copy that did not begin, or was stopped, only means that another one failed.
        for error in sorted(failures, key=lambda error: isinstance(error, CancelledError)):
            raise error
        return max((copy.result() for copy in self._copies.values()), default=self._started) - self._started

    def cancel(self) -> None:
        """Stop within one chunk, and return when no more bytes will be written."""
        self._stopped.set()
        wait(self._copies.values())

    def _run(self, job: CopyJob) -> float:
        """Run one copy and return the time of its end."""
        try:
            self._count(0)
            job(self._count)
        except BaseException:
            self._stopped.set()
            raise
        return time.perf_counter()

    def _count(self, length: int) -> None:
        if self._stopped.is_set():
            raise CancelledError
        if length:
            self._on_bytes(length)
