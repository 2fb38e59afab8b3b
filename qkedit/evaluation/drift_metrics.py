"""The metrics of `drift`."""

from __future__ import annotations

from qkedit.evaluation.metric import Better, Meaning, Unit

DRIFT = "drift"
"""The name under which its results are where others have a benchmark's."""

DRIFT_METRICS = (
    Meaning("kl", Better.LOWER),  # nats
    Meaning("kl_worst", Better.LOWER),
    Meaning("agreement", Better.HIGHER, Unit.SHARE),
    Meaning("overlap", Better.HIGHER, Unit.SHARE),
    Meaning("identical", Better.HIGHER, Unit.SHARE),
)
