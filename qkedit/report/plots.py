"""Common parts of every plot: matplotlib, a checked path, and bytes that do not depend on the time of writing.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError
from qkedit.report.files import check_target
from qkedit.report.terminal_text import on_one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130
# The formats of a plot, each with the metadata that leaves the date out.
_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
PLOT_SUFFIXES = tuple(f".{file_format}" for file_format in _UNDATED)


def require_matplotlib(option: str = "--plot") -> None:
    """Raise QkeditError, naming the option that requests a plot, if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise QkeditError("matplotlib is not installed", where=option, remedy="run: pip install 'qkedit[plot]'")


def check_plot(path: Path, option: str) -> None:
    """Refuse a plot that could not be drawn or written, before any work is done.

    Args:
        path: the path of the file.
        option: the option that gave the path.

    Raises:
        UsageError: the path cannot be written to, or its suffix is not a supported format.
        QkeditError: matplotlib is not installed.
    """
    check_target(path, PLOT_SUFFIXES, option)
    require_matplotlib(option)


def plot_format(path: Path) -> str:
    """Return the format given by the suffix of a checked path: `png`, `svg` or `pdf`."""
    return path.suffix.lower().removeprefix(".")


def entitle(figure: Figure, title: str, font_size: float) -> None:
    """Set the title of a figure. Dollars and underscores in it are not parsed as mathematics."""
    figure.suptitle(on_one_line(title), fontsize=font_size, parse_math=False)


def encoded(figure: Figure, file_format: str) -> bytes:
    """Return a figure as `png`, `svg` or `pdf`, without the date."""
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, dpi=DOTS_PER_INCH, metadata=_UNDATED[file_format])
    return stream.getvalue()
