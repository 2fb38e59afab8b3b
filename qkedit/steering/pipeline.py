"""Let one stage of a stream work ahead of the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def in_background(items: Iterable[Item], ahead: int = 1) -> Iterator[Item]:
    """Yield `items`, produced by a thread that keeps up to `ahead` finished ones waiting.

    Reading, mathematics and writing then overlap, while memory holds no more than a few layers. An exception of
    the producer is raised here, at its place in the order. Closing the iterator stops the producer at its next
    item and waits for it, so that no file is read after the caller has moved on.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=ahead)
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
            put(_END)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(_Failure(error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        producer.join()
