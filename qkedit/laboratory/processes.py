"""Run tasks in several processes, one core each; the results equal those of a single process.

Processes instead of threads, since Python is busy between the small steps of a small model. They are spawned, which is
safe whatever the caller has imported or started. A spawned process imports the caller's script, so that one needs
`if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_processes
from multiprocessing.process import BaseProcess, current_process, parent_process
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qkedit.checkpoint.architecture.library import chosen_directories, using_architectures
from qkedit.errors import QkeditError
from qkedit.laboratory.worker import Job, JobResult, ModelSpec, Worker

Result = TypeVar("Result")
# A function of a worker that can be sent to another process, such as methodcaller("run", job).
Step = Callable[[Any], Any]
# A generator that yields steps, receives the result of each, and returns a result of its own.
Task = Generator[Step, Any, Result]


def end_import_of_script(workers: int) -> None:
    """End a process that only imports a script without a guard, when it gets to work for several processes.

    Python refuses to start processes there, with a traceback in each of them; this way there is one error, of the
    process that runs the script. To be called before a file is locked.

    Args:
        workers: the number of processes to be started.
    """
    if workers > 1 and getattr(current_process(), "_inheriting", False):
        os._exit(1)


def run_jobs(model_spec: ModelSpec, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, JobResult]]:
    """Yield each job with its result, in the order of completion.

    Args:
        model_spec: the model; every worker loads it once.
        jobs: the jobs.
        workers: the number of processes; with 1 this process runs all jobs.

    Raises:
        QkeditError: a job failed, or a worker was killed; the other workers are stopped.
    """
    workers = max(1, min(workers, len(jobs)))
    if workers > 1:
        # The longest jobs first, so that no worker is left with one while the others have nothing to do.
        jobs = sorted(jobs, key=lambda job: -len(job.arm.plugins))
    with Workers([partial(Worker, model_spec)] * workers) as pool:
        for number, result in pool.run(map(_single, jobs)):
            yield jobs[number], result


def _single(job: Job) -> Task[JobResult]:
    result: JobResult = yield methodcaller("run", job)
    return result


class Workers:
    """Objects such as loaded models, each in a process of its own; a single one works in this process.

    A context manager that ends the processes.

    Args:
        makers: functions that make the workers. Each is called when its worker is first needed, in its process.
    """

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        self._makers = makers
        self._made: list[Any] = []  # the single worker of this process
        self._processes: set[BaseProcess] = set()
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def __enter__(self) -> Self:
        """Return self; processes start when they are first needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; after Ctrl-C or an error, without waiting for unneeded work."""
        if kind is not None:
            for process in self._processes:
                process.terminate()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)

    def run(self, tasks: Iterable[Task[Result]]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each task, from 0, and its result, in the order of completion.

        All steps of a task are done by one worker, which does no other task until this one ends.

        Raises:
            QkeditError: a worker was killed. Errors of steps are raised as they are.
        """
        if len(self._makers) == 1:
            for number, task in enumerate(tasks):
                yield number, self._alone(task)
            return
        try:
            yield from self._spread(enumerate(tasks))
        except BrokenProcessPool as error:
            raise self._broken() from error

    def _broken(self) -> QkeditError:
        """Return the error of a process that ended: a signal killed it, or it could not begin."""
        ended = wait_for_processes([process.sentinel for process in self._processes], timeout=10)
        for process in self._processes:
            if process.sentinel in ended:
                process.join()  # its exit code may not be known yet
        if any(process.exitcode is not None and process.exitcode > 0 for process in self._processes):
            return QkeditError(
                "a worker process could not start",
                where="workers",
                remedy='put what your script runs under `if __name__ == "__main__":`, or use one worker',
            )
        return QkeditError(
            "a worker process ended before its work was done",
            where="workers",
            remedy="free some memory, or use fewer workers",
        )

    def _alone(self, task: Task[Result]) -> Result:
        result = None
        while True:
            try:
                step = task.send(result)
            except StopIteration as end:
                return end.value
            if not self._made:
                self._made.append(self._makers[0]())
            result = step(self._made[0])

    def _spread(self, tasks: Iterator[tuple[int, Task[Result]]]) -> Iterator[tuple[int, Result]]:
        idle = list(range(len(self._makers)))
        running: dict[Future[Any], tuple[int, int, Task[Result]]] = {}
        while True:
            ended: list[tuple[int, Result]] = []
            finished = wait(running, return_when=FIRST_COMPLETED).done if running else set()
            ready = [(*running.pop(future), future.result()) for future in finished]
            while ready or idle:
                if not ready:
                    if (following := next(tasks, None)) is None:
                        break
                    ready.append((idle.pop(0), *following, None))
                worker, number, task, result = ready.pop()
                try:
                    running[self._submit(worker, task.send(result))] = worker, number, task
                except StopIteration as end:
                    idle.append(worker)
                    ended.append((number, end.value))
            yield from ended
            if not running:
                return

    def _submit(self, worker: int, step: Step) -> Future[Any]:
        with _ctrl_c_held_back():
            if worker not in self._pools:
                made = _sendable(self._makers[worker])
                before = set(multiprocessing.active_children())
                context = multiprocessing.get_context("spawn")
                pool = self._pools[worker] = ProcessPoolExecutor(1, context, _start, (chosen_directories(),))
                # Not an argument of the process: if it ends without reading a large one, Python waits for ever.
                pool.submit(_prepare, made)
                self._processes |= set(multiprocessing.active_children()) - before
            return self._pools[worker].submit(_done, step)


class _OfProcess:
    """The worker of a process, made at its first step: an error while it is made is then that of the step."""

    make: bytes
    made: Any = None


_of_worker = ExitStack()  # closed at the end of the worker process


def _sendable(make: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise QkeditError(
            f"the work cannot be sent to another process ({error})", where="workers", remedy="use one worker"
        ) from error


def _prepare(make: bytes) -> None:
    _OfProcess.make = make


def _done(step: Step) -> Any:
    if _OfProcess.made is None:
        _OfProcess.made = pickle.loads(_OfProcess.make)()
    return step(_OfProcess.made)


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
