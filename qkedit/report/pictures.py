"""What every picture needs: matplotlib, and bytes that do not depend on when they were made.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported when a picture is asked for.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qkedit.errors import QkeditError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 130


def require_matplotlib() -> None:
    """Raise QkeditError with the remedy when matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise QkeditError("matplotlib is not installed", where="--plot", remedy="run: pip install 'qkedit[plot]'")


def encoded(figure: Figure, file_format: str) -> bytes:
    """Return a figure as `png`, `svg` or `pdf`, without the date."""
    stream = io.BytesIO()
    undated: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[file_format]
    figure.savefig(stream, format=file_format, dpi=DOTS_PER_INCH, metadata=undated)
    return stream.getvalue()
