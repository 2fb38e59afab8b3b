"""qkedit edits the query-key products of vision-language checkpoints on disk, so that they hallucinate less.

    >>> import qkedit
    >>> qkedit.steer("demo", out="./edited", layers="2-5", k=4)          # what `qkedit steer` does
    >>> qkedit.QKProduct(query, key).modes.values                        # W_qᵀ W_k of every head, kept factored

Names are imported when they are first used, so that importing qkedit costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkedit.version import __version__

if TYPE_CHECKING:
    from qkedit.plugins.dscr.plugin import DSCR
    from qkedit.plugins.scr.plugin import SCR
    from qkedit.plugins.transformers.attach import attach
    from qkedit.runtime.editing import ModelEdit, edit
    from qkedit.runtime.products import product_of
    from qkedit.spectral.product import QKProduct
    from qkedit.steering.run import SteerReport, steer

__all__ = [
    "DSCR",
    "SCR",
    "ModelEdit",
    "QKProduct",
    "SteerReport",
    "__version__",
    "attach",
    "edit",
    "product_of",
    "steer",
]

_HOMES = {
    "DSCR": "qkedit.plugins.dscr.plugin",
    "SCR": "qkedit.plugins.scr.plugin",
    "attach": "qkedit.plugins.transformers.attach",
    "ModelEdit": "qkedit.runtime.editing",
    "QKProduct": "qkedit.spectral.product",
    "SteerReport": "qkedit.steering.run",
    "edit": "qkedit.runtime.editing",
    "product_of": "qkedit.runtime.products",
    "steer": "qkedit.steering.run",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qkedit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
