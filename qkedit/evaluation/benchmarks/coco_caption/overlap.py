"""BLEU, ROUGE-L and CIDEr-D of tokenised captions: their overlap with the references of their images.

    BLEU_n   = min(1, exp(1 - r/c)) · (Π_k≤n p_k)^(1/n)      p_k: share of the captions' k-grams that a reference has
    ROUGE-L  = (1 + β²) P R / (R + β² P)                     β 1.2; P and R of the longest common subsequence
    CIDEr-D  = 10 · mean over k ≤ 4 and references of        weights: count · log(images / images with the k-gram)
               Σ min(w, w_ref) w_ref / (|w| |w_ref|) · exp(-(l - l_ref)² / 2σ²)      σ 6; l: number of bigrams

(Papineni et al. 2002; Lin 2004; Vedantam et al. 2015.) The constants and the definition of length are those of
pycocoevalcap 1.2, so the figures are equal to its own. BLEU is a figure of a whole corpus: the counts of the captions
are added. The document frequency of a k-gram counts the references of all images that are scored together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkedit.evaluation.metric import Array

LONGEST = 4
BETA = 1.2
SIGMA = 6.0
# The official quotients add these to avoid a division by zero.
_SMALL, _TINY = 1e-9, 1e-15

NGrams = Mapping[tuple[str, ...], int]


def ngrams(tokens: str) -> Counter[tuple[str, ...]]:
    """Return the count of each run of one to four tokens, short ones first; any whitespace separates tokens."""
    words = tokens.split()
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def bleu_counts(caption: str, references: Sequence[str]) -> tuple[float, ...]:
    """Return the contribution of a caption to BLEU's counts.

    Returns:
        Ten numbers: its length, the length of the closest reference (the shorter of two), and for k from 1 to 4 the
        number of its k-grams and the number of those that a reference also has.
    """
    length = len(caption.split())
    closest = min((abs(other - length), other) for other in (len(reference.split()) for reference in references))[1]
    most: dict[tuple[str, ...], int] = {}
    for reference in references:
        for gram, count in ngrams(reference).items():
            most[gram] = max(most.get(gram, 0), count)
    shared = [0.0] * LONGEST
    for gram, count in ngrams(caption).items():
        shared[len(gram) - 1] += min(most.get(gram, 0), count)
    guessed = (float(max(0, length - order)) for order in range(LONGEST))
    return (float(length), float(closest), *guessed, *shared)


def bleu(order: int) -> Callable[[Array], Array]:
    """Return the function that turns totals of `bleu_counts`, [rows, 10], into BLEU of up to `order`-grams, [rows]."""

    def value(totals: Array) -> Array:
        import numpy as np

        guessed, shared = totals[:, 2 : 2 + order], totals[:, 2 + LONGEST : 2 + LONGEST + order]
        precision = np.prod((shared + _TINY) / (guessed + _SMALL), axis=1) ** (1 / order)
        ratio = (totals[:, 0] + _TINY) / (totals[:, 1] + _SMALL)
        brevity: Array = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        return precision * brevity

    return value


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """Return ROUGE-L of one caption; as in the official script, an empty text is a single empty token."""
    said = caption.split(" ")
    common = [(_longest_common(said, words), len(words)) for words in (text.split(" ") for text in references)]
    precision = max(length for length, _ in common) / len(said)
    recall = max(length / words for length, words in common)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, one row of the usual table at a time (Hyyrö 2004).

    The zero bits of `row` are the positions in `a` where the table's row rises by one.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D of each caption, from 0 to 10; 0 for a single image.

    Args:
        captions: one for each image.
        references: of the same images, which give the document frequencies.
    """
    cooked = [[ngrams(reference) for reference in of_image] for of_image in references]
    images_with = Counter(gram for of_image in cooked for gram in {gram for one in of_image for gram in one})
    log_images = math.log(max(1, len(cooked)))

    def weigh(grams: NGrams) -> _Weighted:
        return _Weighted(grams, lambda gram: log_images - math.log(max(1, images_with[gram])))

    scores = []
    for caption, of_image in zip(captions, cooked, strict=True):
        said = weigh(ngrams(caption))
        scores.append(10 * sum(said.similarity(weigh(reference)) for reference in of_image) / len(of_image))
    return scores


class _Weighted:
    """The weighted k-grams of a text for each k, the norm for each k, and the number of bigrams."""

    def __init__(self, grams: NGrams, rarity: Callable[[tuple[str, ...]], float]) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for gram, count in grams.items():
            self.weights[len(gram) - 1][gram] = count * rarity(gram)
        self.norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in self.weights]
        self.bigrams = sum(count for gram, count in grams.items() if len(gram) == 2)

    def similarity(self, reference: _Weighted) -> float:
        """Return the mean over k of the clipped cosines, with a penalty for a difference in length."""
        total = 0.0
        for own, other, norm in zip(
            self.weights, reference.weights, map(_product, self.norms, reference.norms), strict=True
        ):
            common = sum(min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
            total += common / norm if norm else common
        return total / LONGEST * math.exp(-((self.bigrams - reference.bigrams) ** 2) / (2 * SIGMA**2))


def _product(a: float, b: float) -> float:
    return a * b
