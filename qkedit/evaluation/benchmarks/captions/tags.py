"""Compute part-of-speech tags exactly as `nltk.pos_tag` does, several times as fast.

nltk's perceptron scores every tag by the sum of its weights over a word's features, and takes the best; among equal
ones, the last by name. It adds weight by weight; here the weights of one feature are one array. Each tag's sum has the
same addends in the same order, so it is equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Features concern one or two words, so there are more features than words: 45 numbers each.
REMEMBERED_FEATURES = 2**17


def tagger(perceptron: Any) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that returns the tag of each token of a text.

    Args:
        perceptron: nltk's `PerceptronTagger`; it is modified, and must not be used elsewhere.
    """
    perceptron.model.predict = _predictor(perceptron.model.weights, perceptron.classes)

    def tags(tokens: Sequence[str]) -> list[str]:
        return [tag for _, tag in perceptron.tag(tokens)]

    return tags


def _predictor(
    weights: Mapping[str, Mapping[str, float]], labels: Iterable[str]
) -> Callable[[Iterable[str]], tuple[str, None]]:
    """Return the perceptron's `predict`: features → the best label, without a confidence.

    Args:
        weights: feature → label → weight; absent weights are zero.
        labels: all labels.
    """
    import numpy as np

    # argmax takes the first of the largest, which is the last by name.
    order = sorted(labels, reverse=True)

    @lru_cache(REMEMBERED_FEATURES)
    def weights_of(feature: str) -> np.ndarray:
        of_label = weights.get(feature, {})
        return np.array([of_label.get(label, 0.0) for label in order])

    def predict(features: Iterable[str], return_conf: bool = False) -> tuple[str, None]:
        scores = np.zeros(len(order))
        for feature in features:
            if feature in weights:
                scores += weights_of(feature)
        return order[int(scores.argmax())], None

    return predict
