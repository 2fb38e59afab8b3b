"""Let one stage of a stream work ahead of the next one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()
# Seconds. An item takes less; an interrupt must not wait for a network that no longer answers.
_PATIENCE = 10


@contextmanager
def prefetch(items: Iterable[Item], depth: int = 1) -> Iterator[Iterator[Item]]:
    """Yield an iterator over `items`, which a thread produces from the start of the block, up to `depth` ahead.

        with prefetch(layers) as read:
            for layer in read:
                …

    Reading, mathematics and writing then overlap. With a `depth` of 0, each item is produced when it is asked
    for, without a thread. An exception of the producer is raised at its place in the order. Leaving the block stops
    the producer at its next item and waits for it, so that no file is read after the caller has moved on; it does not
    wait for a producer that hangs.
    """
    if not depth:
        try:
            yield iter(items)
        finally:
            _close(items)
        return
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
                del item  # while the next one is produced
            put(_END)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(_Failure(error))
        finally:
            _close(items)

    def finished() -> Iterator[Item]:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
            del item

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    try:
        yield finished()
    finally:
        stopped.set()
        producer.join(_PATIENCE)


def _close(items: object) -> None:
    """Close a generator now, so that it releases its resources."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
