"""Plot keys over the image: the request's image, and next to it the colours of its keys.

matplotlib is an extra (`pip install 'qkedit[plot]'`), imported only when a plot is requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qkedit.report.plots import encoded, entitle, require_matplotlib

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def keys_plot(panels: Sequence[tuple[str, Tensor]], image: Image, title: str, file_format: str) -> bytes:
    """Return an image next to plots of its keys, as `png`, `svg` or `pdf`; the same keys give the same bytes.

    Args:
        panels: the title and the colours `[rows, columns, 3]` of each panel.
        image: the image of the request.
        title: the title of the whole figure.
        file_format: the format of the file.

    Raises:
        QkeditError: matplotlib is not installed.
    """
    require_matplotlib("--plot")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "qkedit", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(3.2 * (len(panels) + 1), 3.6), layout="constrained")
        entitle(figure, title, 11)
        axes = figure.subplots(1, len(panels) + 1)
        axes[0].imshow(image)
        axes[0].set_title("image")
        for area, (name, colours) in zip(axes[1:], panels, strict=True):
            area.imshow(colours.numpy(), interpolation="nearest")
            area.set_title(name, parse_math=False)
        for area in axes:
            area.set_xticks([])
            area.set_yticks([])
        return encoded(figure, file_format)
