"""The COCO objects that a caption mentions, by the rules of CHAIR (Rohrbach et al., arXiv 1809.02156).

Tokens → their base forms → pairs of words with one meaning are joined → words of the table of synonyms → the first
word of their line, the object. The official rule takes singulars by the library pattern (`official`); OPERA (arXiv
2311.17911) and the harnesses that follow it take WordNet's lemmas by part of speech (`wordnet`). Both ignore context:
`orange` is always a fruit, and the singular of `bus` is `bu`, which no line has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.captions import language as caption_language
from qkedit.evaluation.files.json_rows import read_text

VARIANTS = ("official", "wordnet")

_ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("animal", "cub"),
)
# Pairs that count as one word. `home plate` and `train track` are not objects, and hide `plate` and `train`.
_PAIRS = (
    *("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light"),
    *("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove"),
    *("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier"),
    *("potted plant", "bow tie", "laptop computer", "home plate", "train track"),
)
# (first word, second word) → the word that replaces both.
MERGED: dict[tuple[str, str], str] = {
    **{(pair.split()[0], pair.split()[1]): pair for pair in _PAIRS},
    # A young or grown animal is not a person, as `baby` and `adult` alone are.
    **{(age, animal): animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{("passenger", vehicle): vehicle for vehicle in ("jet", "train")},
    ("bow", "tie"): "tie",
    ("toilet", "seat"): "toilet",
    # The form that the singular of `wine glass` takes.
    ("wine", "glas"): "wine glass",
}
_FIRST_WORDS = frozenset(first for first, _ in MERGED)


@dataclass(frozen=True)
class Reading:
    """The objects that a caption mentions.

    Attributes:
        objects: every mention in order, repeats included.
        words: the word behind each of them, in its base form.
        tokens: the number of tokens after pairs were joined; None if they are not counted.
        places: for each of them its first token before pairs became one, and the token after its last.
    """

    objects: tuple[str, ...]
    words: tuple[str, ...] = ()
    tokens: int | None = None
    places: tuple[tuple[int, int], ...] = ()


# A caption's tokens, and the base form of each.
Forms = Callable[[str], tuple[list[str], list[str]]]
Reader = Callable[[str], Reading]


@dataclass(frozen=True)
class Synonyms:
    """The table of synonyms: the object that each word means.

    Attributes:
        objects: the first word of each line, in order.
        object_of: word → object.
    """

    objects: tuple[str, ...] = field(repr=False)
    object_of: dict[str, str] = field(repr=False)

    def in_order(self, objects: Iterable[str]) -> tuple[str, ...]:
        """Return distinct objects in the table's order."""
        return tuple(sorted(set(objects), key=self._places.__getitem__))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.objects)}


def synonyms_in(text: str) -> Synonyms:
    """Return the table of a text with one object per line, `object, synonym, …`.

    A line is split at a comma and exactly one space, as the official script does. A word after two spaces
    keeps one and so matches nothing; if a word occurs twice, the last line counts.
    """
    lines = [line.strip().split(", ") for line in text.splitlines() if line.strip()]
    return Synonyms(tuple(line[0] for line in lines), {word: line[0] for line in lines for word in line})


def read_synonyms(file: Path) -> Synonyms:
    """Return the table in a file. Raises QkeditError if it cannot be read or is empty."""
    synonyms = synonyms_in(read_text(file))
    if not synonyms.objects:
        raise QkeditError("holds no words", where=str(file), remedy="restore CHAIR's table of synonyms")
    return synonyms


def merged(words: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return words with each known pair made one, from left to right, each with its first place and the one after."""
    if _FIRST_WORDS.isdisjoint(words):
        return [(word, place, place + 1) for place, word in enumerate(words)]
    single: list[tuple[str, int, int]] = []
    place = 0
    while place < len(words):
        word = words[place]
        together = MERGED.get((word, words[place + 1])) if word in _FIRST_WORDS and place + 1 < len(words) else None
        end = place + (1 if together is None else 2)
        single.append((word if together is None else together, place, end))
        place = end
    return single


def reading_of(base_forms: Sequence[str], synonyms: Synonyms) -> Reading:
    """Return the mentions in a caption, given its words in their base forms."""
    words = merged(base_forms)
    # In "the seat of the toilet", `seat` does not mean a chair, although it is a synonym.
    ignored = "seat" if any(word == "toilet" for word, _, _ in words) else None
    said = [entry for entry in words if entry[0] in synonyms.object_of and entry[0] != ignored]
    return Reading(
        tuple(synonyms.object_of[word] for word, _, _ in said),
        tuple(word for word, _, _ in said),
        len(words),
        tuple((first, end) for _, first, end in said),
    )


def reader(synonyms: Synonyms, variant: str = "official", data: Path | None = None) -> Reader:
    """Return the function that reads captions by one of the VARIANTS.

    Args:
        data: the user's data directory, which may hold nltk's data.

    Raises:
        UsageError: the variant is unknown.
        QkeditError: a library or its data are missing.
    """
    forms = forms_of(variant, data)
    return lambda caption: reading_of(forms(caption.lower())[1], synonyms)


def forms_of(variant: str, data: Path | None = None) -> Forms:
    """Return the function that splits a caption in lower case into tokens with their base forms; see `reader`."""
    if variant == "official":
        return _singulars(data)
    if variant == "wordnet":
        return _lemmas(data)
    raise UsageError(f"unknown variant {variant!r}", where="chair", remedy=f"choose one of {', '.join(VARIANTS)}")


def _singulars(data: Path | None) -> Forms:
    tokens, singular = caption_language.tokenizer(data), caption_language.singularizer()

    def forms(text: str) -> tuple[list[str], list[str]]:
        found = tokens(text)
        return found, [singular(token) for token in found]

    return forms


def _lemmas(data: Path | None) -> Forms:
    tokens, tags = caption_language.tokenizer(data), caption_language.tagger(data)
    lemma, part_of_speech = caption_language.lemmatizer(data), caption_language.part_of_speech

    def forms(text: str) -> tuple[list[str], list[str]]:
        found = tokens(text)
        return found, [lemma(token, part_of_speech(tag)) for token, tag in zip(found, tags(found), strict=True)]

    return forms
