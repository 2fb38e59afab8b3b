"""Progress bars on a terminal; elsewhere, a line of progress now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qkedit.cli.output import Output
from qkedit.steering.engine.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# Seconds until the first line, so that a short run prints none, and between two lines.
FIRST, BETWEEN = 10.0, 60.0


@contextmanager
def progress_bar(output: Output) -> Iterator[Progress]:
    """Show the progress of a run on standard error, if it is a terminal."""
    if not output.shows_progress:
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True) as bars:
        yield _Bar(bars)


@contextmanager
def reading_bar(output: Output) -> Iterator[Callable[[int], None]]:
    """Show the number of bytes read and the speed, if the total is unknown."""
    if not output.shows_progress:
        yield lambda length: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, SpinnerColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("reading"), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda length: bars.advance(task, length)


@contextmanager
def counting_bar(output: Output, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a known number of items, and the remaining time."""
    if not output.shows_progress:
        yield ProgressLines(what, output.progress)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Bar:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._layers = self._done = 0

    def start(self, layers: int, total_bytes: int) -> None:
        self._layers = layers
        self._task = self._bars.add_task(self._description(), total=total_bytes)

    def layer_done(self) -> None:
        self._done += 1
        self._bars.update(self._task, description=self._description())

    def bytes_done(self, length: int) -> None:
        self._bars.advance(self._task, length)

    def _description(self) -> str:
        return f"layer {self._done}/{self._layers}"


class ProgressLines:
    """Prints the progress of a known number of items, and about how long the rest will take, without a terminal.

    Args:
        what: the items that are counted: "answers".
        write: writes a line.
        clock: returns the time in seconds.
    """

    def __init__(self, what: str, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._write = write
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Report the number of finished items; the first call gives the number from before this run."""
        now = self._clock()
        if self._start is None:
            self._start, self._next = (now, done), now + FIRST
            return
        began, before = self._start
        if now < self._next or done >= total:
            return
        self._next = now + BETWEEN
        share = f"{self._what}: {done} of {total} ({done / total:.0%})"
        left = f", about {in_words((now - began) * (total - done) / (done - before))} left" if done > before else ""
        self._write(f"{share}{left}")


def in_words(seconds: float) -> str:
    """Format a length of time: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
