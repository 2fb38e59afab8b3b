"""What every picture needs: matplotlib, a place to stand, and bytes that do not depend on when they were made.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported when a picture is asked for.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError
from qkedit.report.files import check_target, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130
# Each format a picture can have, with what leaves the date out of it.
_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
PICTURE_SUFFIXES = tuple(f".{file_format}" for file_format in _UNDATED)


def require_matplotlib(option: str = "--plot") -> None:
    """Raise QkeditError with the remedy, naming the option that asks for a picture, without matplotlib."""
    if find_spec("matplotlib") is None:
        raise QkeditError("matplotlib is not installed", where=option, remedy="run: pip install 'qkedit[plot]'")


def check_picture(path: Path, option: str) -> None:
    """Refuse a picture that could not be drawn or written, before any work is done.

    Args:
        path: where it is to stand.
        option: which one names that place.

    Raises:
        UsageError: nothing can be written there, or its suffix names no format of pictures.
        QkeditError: matplotlib is not installed.
    """
    check_target(path, PICTURE_SUFFIXES, option)
    require_matplotlib(option)


def picture_format(path: Path) -> str:
    """Return the format that the suffix of a checked place names: `png`, `svg` or `pdf`."""
    return path.suffix.lower().removeprefix(".")


def entitle(figure: Figure, title: str, font_size: float) -> None:
    """Set the title of a figure; names in it are not mathematics, whatever dollars and underscores they hold."""
    figure.suptitle(printable(title), fontsize=font_size, parse_math=False)


def encoded(figure: Figure, file_format: str) -> bytes:
    """Return a figure as `png`, `svg` or `pdf`, without the date."""
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, dpi=DOTS_PER_INCH, metadata=_UNDATED[file_format])
    return stream.getvalue()
