"""Spread jobs over processes, one core each, with the results of one process.

Processes rather than threads: Python is busy between the small steps of a small model. They are spawned, which is
safe whatever the caller has imported or started; a script that calls this needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.process import parent_process
from pathlib import Path

from qkedit.checkpoint.architecture.library import chosen_directories, using_architectures
from qkedit.errors import QkeditError
from qkedit.laboratory.worker import Job, JobResult, ModelSpec, Worker


def run_jobs(model_spec: ModelSpec, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, JobResult]]:
    """Yield each job with its result, in the order in which they are done.

    Args:
        model_spec: the model; every worker loads it once.
        jobs: what to do.
        workers: how many processes; with 1 this process does it all.

    Raises:
        QkeditError: a job failed, or a worker was killed; the other workers are stopped.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        worker = cache(Worker)
        for job in jobs:
            yield job, worker(model_spec).run(job)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (chosen_directories(),))
    futures: dict[Future[JobResult], Job] = {}
    try:
        with _ctrl_c_held_back():
            futures = {pool.submit(_run, model_spec, job): job for job in jobs}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise QkeditError(
            "a worker process ended before its work was done",
            where="--workers",
            remedy="free some memory, or give fewer workers",
        ) from error
    finally:
        # Whoever leaves early, by Ctrl-C or an error, does not wait for work that nobody wants any more.
        if futures:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(cancel_futures=True)


_worker = cache(Worker)  # of this worker
_of_worker = ExitStack()  # closed at its end


def _run(model_spec: ModelSpec, job: Job) -> JobResult:
    return _worker(model_spec).run(job)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes that take Ctrl-C only when they can end without a traceback, which an import would print.

    A process takes over which signals are held back from the thread that starts it. In this one it comes afterwards.
    """
    resource_tracker.ensure_running()  # starting it lets Ctrl-C through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start(architectures: tuple[Path, ...] | None) -> None:
    """Make a worker end at Ctrl-C without a word, and with its parent, however that ends; and know its records."""
    _of_worker.enter_context(using_architectures(architectures))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
