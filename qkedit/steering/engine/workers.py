"""Spread the heads of a layer over the cores, with the same bits on any number of them.

A multi-threaded matrix product sums in an order that depends on the number of threads, and its threads wait for
each other: next to another busy thread (such as a copy) two-thread products were several times slower.
So each worker calculates whole groups of heads, single-threaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool that calls a function on several items, in threads where that helps; results keep the items' order."""

    def __init__(self, executor: ThreadPoolExecutor | None, *, splits: bool = True) -> None:
        self._executor = executor
        self._splits = splits

    @property
    def splits(self) -> bool:
        """True if work is split into one item per key head; a GPU is faster with a whole layer at once."""
        return self._executor is not None and self._splits

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return `function` of each item; raise the exception of the first item that failed."""
        return self.begin(function, items)()

    def begin(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Callable[[], list[Result]]:
        """Start what `map` does, and return a function that waits for the results."""
        if self._executor is None:
            results = [function(item) for item in items]
            return lambda: results
        begun = [self._executor.submit(function, item) for item in items]
        return lambda: [call.result() for call in begun]

    def stream(
        self, begin: Callable[[Item], Callable[[], Result]], items: Iterable[Item], ahead: int
    ) -> Iterator[Result]:
        """Yield `begin(item)()` for each item, in their order.

        In threads, up to `ahead` more items are begun before one has ended, for workers that have become free.
        """
        begun: deque[Callable[[], Result]] = deque()
        for item in items:
            begun.append(begin(item))
            del item  # so that only the work begun with an item holds it
            if self._executor is None or len(begun) > ahead:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()


@contextmanager
def workers(*devices: torch.device) -> Iterator[Workers]:
    """Yield as many workers as torch may use threads (`OMP_NUM_THREADS` limits both).

    On a GPU the caller is the only worker; several GPUs have one worker each.
    """
    if devices[0].type != "cpu":
        if len(devices) == 1:
            yield Workers(None)
            return
        with ThreadPoolExecutor(len(devices), thread_name_prefix="qkedit-devices") as pool:
            yield Workers(pool, splits=False)
        return
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        count, thread_name_prefix="qkedit-heads", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)  # torch also remembers the last count for threads yet to come
