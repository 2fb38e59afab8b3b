"""The table of AMBER's similar words, read from a file or made once by spaCy.

The official script asks spaCy's model `en_core_web_lg` whether two words are more than 0.8 similar. Both come from
AMBER's own vocabulary, so a table of pairs holds every answer, and nobody else needs the model:

    {"model": "en_core_web_lg", "version": "3.8.0", "threshold": 0.8,
     "words": ["bike", …], "pairs": [["bicycle", "bike"], …]}
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from qkedit.checkpoint.io.whole_file import write_whole
from qkedit.errors import QkeditError
from qkedit.evaluation.files.json_rows import read_object
from qkedit.strict_text import json_text

MODEL = "en_core_web_lg"
THRESHOLD = 0.8
_KEYS = ("model", "version", "threshold", "words", "pairs")


@dataclass(frozen=True)
class Similarity:
    """The pairs of similar words.

    Attributes:
        model: the model that compared them, and its version.
        words: all words that were compared.
        pairs: the pairs of similar words, in either order.
    """

    model: str
    version: str
    words: frozenset[str] = field(repr=False)
    pairs: frozenset[tuple[str, str]] = field(repr=False)

    def __call__(self, word: str, other: str) -> bool:
        """Return whether two words are similar; a word is similar to itself."""
        return word == other or (word, other) in self.pairs or (other, word) in self.pairs


# Without a table, a word is similar only to itself.
EXACT = Similarity("", "", frozenset(), frozenset())


def read_similarity(file: Path, vocabulary: Collection[str]) -> Similarity:
    """Return the table in a file.

    Args:
        vocabulary: the words that the table must cover.

    Raises:
        QkeditError: the file is not such a table, has another threshold, or was made without some of the words.
    """
    table = read_object(file)
    remedy = "make it again with a published AMBER and spaCy's en_core_web_lg"
    try:
        model, version, threshold, words, pairs = (table[key] for key in _KEYS)
        similarity = Similarity(
            str(model), str(version), frozenset(words), frozenset((first, second) for first, second in pairs)
        )
    except (ValueError, KeyError, TypeError):
        raise QkeditError(
            f"is not a table of similar words, an object with {', '.join(_KEYS)}", where=str(file), remedy=remedy
        ) from None
    if threshold != THRESHOLD:
        raise QkeditError(f"has the threshold {threshold}, but AMBER's is {THRESHOLD}", where=str(file), remedy=remedy)
    absent = sorted(set(vocabulary) - similarity.words)
    if absent:
        raise QkeditError(
            f"was made without {len(absent)} of AMBER's words, such as {absent[0]!r}", where=str(file), remedy=remedy
        )
    return similarity


def write_similarity(similarity: Similarity, file: Path) -> None:
    """Write a table to a file, for `read_similarity`. Raises QkeditError if it cannot be written."""
    values = (
        similarity.model,
        similarity.version,
        THRESHOLD,
        sorted(similarity.words),
        sorted(map(list, similarity.pairs)),
    )
    write_whole(file, json_text(dict(zip(_KEYS, values, strict=True)), indent=1).encode())


def build_similarity(vocabulary: Collection[str]) -> Similarity | None:
    """Return the table by spaCy's model, or None if spaCy or the model is not installed."""
    try:
        import spacy
    except ImportError:
        return None
    if not spacy.util.is_package(MODEL):
        return None
    language = spacy.load(MODEL)
    words = sorted(vocabulary)
    with warnings.catch_warnings():
        # spaCy warns of words without a vector, which are similar to nothing; the official script is silent, too.
        warnings.simplefilter("ignore", UserWarning)
        documents = {word: language(word) for word in words}
        pairs = frozenset(
            (first, second)
            for first, second in combinations(words, 2)
            if documents[first].similarity(documents[second]) > THRESHOLD
        )
    return Similarity(MODEL, str(language.meta["version"]), frozenset(words), pairs)
