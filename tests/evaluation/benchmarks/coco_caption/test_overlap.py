"""Test BLEU, ROUGE-L and CIDEr-D against slow implementations of their definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkedit.evaluation.benchmarks.coco_caption.overlap import BETA, SIGMA, bleu, bleu_counts, cider_d, rouge_l

texts = st.lists(st.sampled_from("abcde"), max_size=12).map(" ".join)
images = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5)
FEW = settings(max_examples=30)
Images = list[tuple[str, list[str]]]


def grams(text: str, order: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def slow_bleu(shown: Images, order: int) -> float:
    said = reference = 0
    shared, guessed = [0] * order, [0] * order
    for caption, references in shown:
        length = len(caption.split())
        said += length
        reference += sorted((abs(len(text.split()) - length), len(text.split())) for text in references)[0][1]
        for place in range(order):
            own = grams(caption, place + 1)
            guessed[place] += len(own)
            for gram in set(own):
                most = max(grams(text, place + 1).count(gram) for text in references)
                shared[place] += min(own.count(gram), most)
    # The official script adds small numbers, so that it never divides by zero.
    precision = math.prod((one + 1e-15) / (all + 1e-9) for one, all in zip(shared, guessed, strict=True))
    return precision ** (1 / order) * min(1.0, math.exp(1 - (reference + 1e-9) / (said + 1e-15)))


def slow_common(a: Sequence[str], b: Sequence[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for row, one in enumerate(a, start=1):
        for column, other in enumerate(b, start=1):
            same = table[row - 1, column - 1] + 1
            table[row, column] = same if one == other else max(table[row - 1, column], table[row, column - 1])
    return int(table[-1, -1])


def slow_rouge(caption: str, references: list[str]) -> float:
    said = caption.split(" ")
    of_each = [(slow_common(said, text.split(" ")), len(text.split(" "))) for text in references]
    precision = max(common / len(said) for common, _ in of_each)
    recall = max(common / length for common, length in of_each)
    bottom = recall + BETA**2 * precision
    return (1 + BETA**2) * precision * recall / bottom if bottom else 0.0


def slow_cider(shown: Images) -> list[float]:
    def vector(text: str, order: int, known: list[tuple[str, ...]]) -> np.ndarray:
        counts = Counter(grams(text, order))
        having = [sum(any(gram in grams(one, order) for one in refs) for _, refs in shown) for gram in known]
        return np.array(
            [counts[gram] * math.log(len(shown) / max(1, n)) for gram, n in zip(known, having, strict=True)]
        )

    scores = []
    for caption, references in shown:
        total = 0.0
        for order in range(1, 5):
            for reference in references:
                known = sorted({*grams(caption, order), *grams(reference, order)})
                a, b = vector(caption, order, known), vector(reference, order, known)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                cosine = (np.minimum(a, b) * b).sum() / norm if norm else 0.0
                gap = len(grams(caption, 2)) - len(grams(reference, 2))
                total += cosine * math.exp(-(gap**2) / (2 * SIGMA**2))
        scores.append(10 * total / 4 / len(references))
    return scores


@FEW
@given(images)
def test_bleu_equals_its_definition(shown: Images) -> None:
    totals = np.sum([bleu_counts(*image) for image in shown], axis=0)[None]
    for order in range(1, 5):
        assert bleu(order)(totals)[0] == pytest.approx(slow_bleu(shown, order), abs=1e-12)


@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_rouge_l_equals_its_definition(caption: str, references: list[str]) -> None:
    assert rouge_l(caption, references) == pytest.approx(slow_rouge(caption, references), abs=1e-12)


@FEW
@given(images)
def test_cider_d_equals_its_definition(shown: Images) -> None:
    found = cider_d([caption for caption, _ in shown], [references for _, references in shown])
    assert found == pytest.approx(slow_cider(shown), abs=1e-9)
    assert all(0 <= value <= 10 + 1e-9 for value in found)


def test_official_quirks_are_kept() -> None:
    assert rouge_l("", ["", "a b"]) == 1.0, "an empty text is one token, also in a reference"
    assert bleu_counts("a b c", ["a b", "a b c d"])[:2] == (3, 2), "of two equally near lengths the shorter one counts"
    # A non-breaking space: one token for ROUGE-L, two for the others.
    assert bleu_counts("1\xa01/2 cups", ["1 1/2 cups"])[0] == 3
    assert rouge_l("1\xa01/2", ["1 1/2"]) == 0.0
