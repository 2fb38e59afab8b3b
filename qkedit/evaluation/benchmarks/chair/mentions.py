"""Locate the mentions of objects in a caption: the characters of each object that CHAIR's rules find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qkedit.evaluation.benchmarks.captions.tokens import token_spans
from qkedit.evaluation.benchmarks.chair.words import Synonyms, forms_of, reading_of


@dataclass(frozen=True)
class Mention:
    """One mention of an object in a caption.

    Attributes:
        object: the mentioned object, such as `hot dog`.
        start: its first character.
        end: the character after the last one.
    """

    object: str
    start: int
    end: int


MentionFinder = Callable[[str], tuple[Mention, ...]]


def mention_finder(synonyms: Synonyms, variant: str = "official", data: Path | None = None) -> MentionFinder:
    """Return the function that finds the mentions that `reader` reads, by one of CHAIR's variants.

    Args:
        synonyms: the object that each word means.
        variant: `official` or `wordnet`.
        data: the user's data directory, which may hold nltk's data.

    Raises:
        UsageError: the variant is unknown.
        QkeditError: a library or its data are missing.
    """
    forms = forms_of(variant, data)

    def find(caption: str) -> tuple[Mention, ...]:
        tokens, base_forms = forms(caption.lower())
        spans, reading = token_spans(caption, tokens), reading_of(base_forms, synonyms)
        return tuple(
            Mention(name, spans[first][0], spans[end - 1][1])
            for name, (first, end) in zip(reading.objects, reading.places, strict=True)
        )

    return find
