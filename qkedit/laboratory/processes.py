"""Run jobs in several processes, one core each; the results equal those of a single process.

Processes instead of threads, since Python is busy between the small steps of a small model. They are spawned, which is
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
    """Yield each job with its result, in the order of completion.

    Args:
        model_spec: the model; every worker loads it once.
        jobs: the jobs.
        workers: the number of processes; with 1 this process runs all jobs.

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
            # The longest jobs first, so that no worker is left with one while the others have nothing to do.
            longest_first = sorted(jobs, key=lambda job: -len(job.arm.plugins))
            futures = {pool.submit(_run, model_spec, job): job for job in longest_first}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise QkeditError(
            "a worker process ended before its work was done",
            where="--workers",
            remedy="free some memory, or use fewer workers",
        ) from error
    finally:
        # After Ctrl-C or an error, do not wait for unneeded work.
        if futures:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
        pool.shutdown(cancel_futures=True)


_worker = cache(Worker)  # the worker of this process
_of_worker = ExitStack()  # closed at the end of the worker process


def _run(model_spec: ModelSpec, job: Job) -> JobResult:
    return _worker(model_spec).run(job)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes with Ctrl-C blocked until they can end without a traceback, which an import would print.

    A process inherits the blocked signals of the thread that starts it. This process gets Ctrl-C afterwards.
    """
    resource_tracker.ensure_running()  # starting it later would unblock Ctrl-C
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start(architectures: tuple[Path, ...] | None) -> None:
    """Make a worker end silently at Ctrl-C and together with its parent, and use the parent's records."""
    _of_worker.enter_context(using_architectures(architectures))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
