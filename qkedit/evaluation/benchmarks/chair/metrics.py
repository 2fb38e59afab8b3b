"""CHAIR's metrics of captions, and their length."""

from __future__ import annotations

from qkedit.evaluation.metric import Better, Metric, Unit, ratio

METRICS = (
    Metric(
        "chair_s",
        Better.LOWER,
        Unit.SHARE,
        ratio(lambda item: (bool(item.hallucinated), 1)),
        is_hallucination=True,
    ),
    Metric(
        "chair_i",
        Better.LOWER,
        Unit.SHARE,
        ratio(lambda item: (len(item.hallucinated), len(item.found))),
        is_hallucination=True,
    ),
    Metric(
        "recall",
        Better.HIGHER,
        Unit.SHARE,
        ratio(lambda item: (len(item.covered), len(item.truth))),
        loss="lost recall",
    ),
    Metric("mean_words", sums=ratio(lambda item: (item.words, 1)), loss="shorter captions"),
)
