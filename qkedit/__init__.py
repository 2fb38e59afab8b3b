"""qkedit edits the query-key products of vision-language checkpoints on disk, so that they hallucinate less.

    >>> import qkedit
    >>> qkedit.steer("demo", out="./edited", layers=range(2, 6), k=4)    # what `qkedit steer` does
    >>> with qkedit.edit(model, layers="10-20", k=4) as edit: ...        # the same on a loaded model
    >>> qkedit.QKProduct(query, key).S                                   # W_qᵀ W_k of every head, kept factored

What a command computes, a function here returns (docs/api.md). Names are imported at their first use, so that
importing qkedit is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkedit.version import __version__

if TYPE_CHECKING:
    from qkedit.api.differences import diff, extract
    from qkedit.api.editing import plan, steer
    from qkedit.api.evaluating import evaluate, evaluate_arms, evaluate_endpoint, verify_endpoint
    from qkedit.api.experiments import demonstrate, sweep
    from qkedit.api.measuring import attention, compare, drift, score
    from qkedit.api.outputs import apply, export, interpolate, merge, verify
    from qkedit.api.publishing import push
    from qkedit.api.requirements import gate
    from qkedit.api.running import generate, kv_coherence
    from qkedit.api.spectra import compare_spectra, inspect, suggest
    from qkedit.api.tuning import tune
    from qkedit.checkpoint.architecture.library import using_architectures
    from qkedit.errors import QkeditError
    from qkedit.plugins.core.protocol import Plugin
    from qkedit.plugins.dscr.plugin import DSCR
    from qkedit.plugins.scr.plugin import SCR
    from qkedit.plugins.transformers.attach import attach
    from qkedit.runtime.copying_heads import copying_heads
    from qkedit.runtime.editing import ModelEdit, edit
    from qkedit.runtime.loading import load
    from qkedit.runtime.products import product_of
    from qkedit.runtime.sink import sink_of
    from qkedit.spectral.product import QKProduct
    from qkedit.spectral.suppression import Suppression
    from qkedit.steering.run import SteerReport
    from qkedit.steering.undo.revert import revert

__all__ = [
    "DSCR",
    "SCR",
    "ModelEdit",
    "Plugin",
    "QKProduct",
    "QkeditError",
    "SteerReport",
    "Suppression",
    "__version__",
    "apply",
    "attach",
    "attention",
    "compare",
    "compare_spectra",
    "copying_heads",
    "demonstrate",
    "diff",
    "drift",
    "edit",
    "evaluate",
    "evaluate_arms",
    "evaluate_endpoint",
    "export",
    "extract",
    "gate",
    "generate",
    "inspect",
    "interpolate",
    "kv_coherence",
    "load",
    "merge",
    "plan",
    "product_of",
    "push",
    "revert",
    "score",
    "sink_of",
    "steer",
    "suggest",
    "sweep",
    "tune",
    "using_architectures",
    "verify",
    "verify_endpoint",
]

# Where each name is defined.
_HOMES = {
    "tune": "qkedit.api.tuning",
    "DSCR": "qkedit.plugins.dscr.plugin",
    "SCR": "qkedit.plugins.scr.plugin",
    "Plugin": "qkedit.plugins.core.protocol",
    "attach": "qkedit.plugins.transformers.attach",
    "ModelEdit": "qkedit.runtime.editing",
    "edit": "qkedit.runtime.editing",
    "product_of": "qkedit.runtime.products",
    "sink_of": "qkedit.runtime.sink",
    "copying_heads": "qkedit.runtime.copying_heads",
    "load": "qkedit.runtime.loading",
    "QKProduct": "qkedit.runtime.products",  # with from_model
    "Suppression": "qkedit.spectral.suppression",
    "SteerReport": "qkedit.steering.run",
    "steer": "qkedit.api.editing",
    "QkeditError": "qkedit.errors",
    "using_architectures": "qkedit.checkpoint.architecture.library",
    "plan": "qkedit.api.editing",
    "inspect": "qkedit.api.spectra",
    "suggest": "qkedit.api.spectra",
    "compare_spectra": "qkedit.api.spectra",
    "apply": "qkedit.api.outputs",
    "export": "qkedit.api.outputs",
    "merge": "qkedit.api.outputs",
    "interpolate": "qkedit.api.outputs",
    "verify": "qkedit.api.outputs",
    "diff": "qkedit.api.differences",
    "extract": "qkedit.api.differences",
    "revert": "qkedit.steering.undo.revert",
    "push": "qkedit.api.publishing",
    "generate": "qkedit.api.running",
    "kv_coherence": "qkedit.api.running",
    "gate": "qkedit.api.requirements",
    "demonstrate": "qkedit.api.experiments",
    "sweep": "qkedit.api.experiments",
    "attention": "qkedit.api.measuring",
    "score": "qkedit.api.measuring",
    "evaluate": "qkedit.api.evaluating",
    "evaluate_arms": "qkedit.api.evaluating",
    "evaluate_endpoint": "qkedit.api.evaluating",
    "verify_endpoint": "qkedit.api.evaluating",
    "compare": "qkedit.api.measuring",
    "drift": "qkedit.api.measuring",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qkedit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
