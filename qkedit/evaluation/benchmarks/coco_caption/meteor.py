"""METEOR 1.5 (Denkowski & Lavie 2014) for English: its program aligns and counts, and this module adds the counts.

    P, R  = weighted matches / weighted words of the caption, of its best reference
    METEOR = (1 - γ (chunks / matches)^β) · P R / (α R + (1 - α) P)

Matches weigh 1, 0.6, 0.8 and 0.6 if exact, of the same stem, synonyms or paraphrases; content words weigh δ and
function words 1 - δ. A caption equal to a reference counts no chunks, so it has no penalty. The corpus's figure is
that of the totals, as pycocoevalcap's program computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qkedit.errors import QkeditError
from qkedit.evaluation.benchmarks.coco_caption.java import WHERE, program, run_java

if TYPE_CHECKING:
    from qkedit.evaluation.metric import Array

_JAR = "meteor/meteor-1.5.jar"
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
# The program prints for a caption: lengths, function words, four counts per stage, chunks and matched words.
_PRINTED = 4 + 4 * len(_STAGE_WEIGHTS) + 3


def meteor_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return the contribution of each caption to the totals that `meteor` takes; see `alignments`."""
    return [counts_of(row) for row in alignments(captions, references)]


def alignments(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return the program's numbers of each caption: lengths, function words, matches by stage, chunks, matches.

    Args:
        captions: the tokens of each caption.
        references: the tokens of the references of the same images.

    Raises:
        QkeditError: Java or pycocoevalcap is missing, or the program's output has another form.
    """
    pairs = zip(captions, references, strict=True)
    rows = (" ||| ".join(("SCORE", *of_image, caption)) for caption, of_image in pairs)
    arguments = ["-Xmx2G", "-jar", str(program(_JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    printed = run_java(arguments, "".join(f"{row}\n" for row in rows), "METEOR's alignments").splitlines()
    try:
        numbers = [tuple(map(float, line.split())) for line in printed]
    except ValueError:
        numbers = []
    if len(numbers) != len(captions) or any(len(row) != _PRINTED for row in numbers):
        raise QkeditError(
            f"METEOR's program did not print, for {len(captions)} captions, one line of {_PRINTED} numbers each",
            where=WHERE,
            remedy="install pycocoevalcap 1.2 again",
        )
    return numbers


def counts_of(printed: Sequence[float]) -> tuple[float, ...]:
    """Return the six numbers that one row of `alignments` adds to the totals.

    Weighted matches and weighted words of the caption, the same of the reference, chunks, and matched words.
    """
    length, other_length, function_words, other_function_words = printed[:4]
    stages = [printed[start : start + 4] for start in range(4, _PRINTED - 3, 4)]
    chunks, matched, other_matched = printed[-3:]
    is_equal = chunks == 1 and matched == length and other_matched == other_length

    def weighed(content: float, function: float) -> float:
        return _DELTA * content + (1 - _DELTA) * function

    return (
        sum(weight * weighed(stage[0], stage[2]) for weight, stage in zip(_STAGE_WEIGHTS, stages, strict=True)),
        weighed(length - function_words, function_words),
        sum(weight * weighed(stage[1], stage[3]) for weight, stage in zip(_STAGE_WEIGHTS, stages, strict=True)),
        weighed(other_length - other_function_words, other_function_words),
        0.0 if is_equal else chunks,
        (matched + other_matched) / 2,
    )


def meteor(totals: Array) -> Array:
    """Return METEOR of each row of totals, [rows, 6] to [rows]; zero without any match."""
    import numpy as np

    matches, words, other_matches, other_words, chunks, matched = totals.T

    def share(part: Array, whole: Array) -> Array:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    precision, recall = share(matches, words), share(other_matches, other_words)
    mean = share(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    value: Array = mean * (1 - _GAMMA * share(chunks, matched) ** _BETA)
    return value
