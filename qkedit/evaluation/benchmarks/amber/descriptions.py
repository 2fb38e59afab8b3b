"""AMBER's generative task (arXiv 2311.07397): compare the objects in a description with those in the image.

Nouns of the description → their lemmas → those in AMBER's vocabulary. In order, each one refers to a true object (by
its own name, by an association or by similarity), or is hallucinated; it may also name one of the objects that people
would expect in the image but that are absent.

    CHAIR = hallucinated nouns / nouns             Cover = true objects mentioned / true objects
    Hal   = descriptions with a hallucination / descriptions
    Cog   = expected but absent objects mentioned / expected but absent objects

Each in percent, with 0.001 more in every denominator, rounded to one decimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qkedit.evaluation.benchmarks.captions import language as caption_language
from qkedit.evaluation.benchmarks.captions.counts import caption_counts
from qkedit.evaluation.files.records import AmberCaptionItem, Answer, Question

Similar = Callable[[str, str], bool]


@dataclass(frozen=True)
class Words:
    """AMBER's words.

    Attributes:
        associations: object → the words that may refer to it.
        safe: nouns that never count as hallucinated.
    """

    associations: Mapping[str, tuple[str, ...]] = field(repr=False)
    safe: frozenset[str]

    @property
    def vocabulary(self) -> frozenset[str]:
        """The nouns that count: every object and every associated word."""
        return frozenset(self.associations).union(*self.associations.values())


@dataclass(frozen=True)
class Judgement:
    """The judgement of a description's nouns.

    Attributes:
        hallucinated: the nouns that refer to nothing in the image.
        covered: the indices of the true objects that are mentioned.
        fallen_for: the indices of the likely objects that are mentioned.
    """

    hallucinated: tuple[str, ...]
    covered: frozenset[int]
    fallen_for: frozenset[int]


def noun_reader(vocabulary: frozenset[str], data: Path | None = None) -> Callable[[str], tuple[str, ...]]:
    """Return a function that finds the lemmas of a description's nouns that are in the vocabulary.

    Capitals are kept: `Dogs` has no lemma that counts.

    Args:
        data: the user's data directory, which may hold nltk's data.

    Raises:
        QkeditError: nltk or its data are missing.
    """
    tokens, tags = caption_language.tokenizer(data), caption_language.tagger(data)
    lemma = caption_language.lemmatizer(data)

    def nouns(text: str) -> tuple[str, ...]:
        found = tokens(text)
        lemmas = (lemma(token, "n") for token, tag in zip(found, tags(found), strict=True) if tag.startswith("NN"))
        return tuple(noun for noun in lemmas if noun in vocabulary)

    return nouns


def judge(
    nouns: Iterable[str], truth: Sequence[str], likely: Sequence[str], words: Words, similar: Similar
) -> Judgement:
    """Decide which object each noun means.

    A safe word is skipped. A word for a true object covers the first such object; associated words are tried before
    the objects themselves. Any other word may mark a likely object, by the same word and then by the first similar
    one; it may still cover a true object by similarity. A word that covers none is hallucinated.
    """
    true_words, likely_words = _places(truth, words), _places(likely, words)
    hallucinated: list[str] = []
    covered: set[int] = set()
    fallen_for: set[int] = set()
    for noun in nouns:
        if noun in words.safe:
            continue
        place = _first(true_words, noun, _same)
        if place is not None:
            covered.add(place)
            continue
        for alike in (_same, similar):
            place = _first(likely_words, noun, alike)
            if place is not None:
                fallen_for.add(place)
        place = _first(true_words, noun, similar)
        if place is None:
            hallucinated.append(noun)
        else:
            covered.add(place)
    return Judgement(tuple(hallucinated), frozenset(covered), frozenset(fallen_for))


def _places(objects: Sequence[str], words: Words) -> list[tuple[str, int]]:
    """Return the words for these objects, each with the index of its object, in AMBER's order."""
    associated = [(word, place) for place, name in enumerate(objects) for word in words.associations[name]]
    return associated + [(name, place) for place, name in enumerate(objects)]


def _first(places: Iterable[tuple[str, int]], noun: str, alike: Similar) -> int | None:
    return next((place for word, place in places if alike(noun, word)), None)


def _same(noun: str, word: str) -> bool:
    return noun == word


def item(
    question: Question, answer: Answer, nouns: tuple[str, ...], words: Words, similar: Similar
) -> AmberCaptionItem:
    """Judge one description."""
    likely: tuple[str, ...] = question.fields["likely"]
    judgement = judge(nouns, question.truth, likely, words, similar)
    return AmberCaptionItem(
        id=question.id,
        found=nouns,
        hallucinated=judgement.hallucinated,
        covered=tuple(question.truth[place] for place in sorted(judgement.covered)),
        truth=tuple(question.truth),
        words=len(answer.text.split()),
        group=question.group,
        likely=likely,
        fallen_for=tuple(likely[place] for place in sorted(judgement.fallen_for)),
    )


def counts_of(items: Sequence[AmberCaptionItem]) -> dict[str, int]:
    """Return the counts from which the figures are computed."""
    return {
        **caption_counts(items),
        "likely_objects": sum(len(item.likely) for item in items),
        "fallen_for_objects": sum(len(item.fallen_for) for item in items),
    }


def figures(counts: Mapping[str, int]) -> dict[str, float]:
    """Return CHAIR, Cover, Hal and Cog as the official script computes them; it never divides by zero."""
    clean = counts["captions"] - counts["hallucinated_captions"]
    return {
        "CHAIR": percent(counts["hallucinated_mentions"], counts["mentions"]),
        "Cover": percent(counts["covered_objects"], counts["true_objects"]),
        "Hal": round(100 - clean / (counts["captions"] + 0.001) * 100, 1),
        "Cog": percent(counts["fallen_for_objects"], counts["likely_objects"]),
    }


def percent(part: int, whole: int, started: int = 1) -> float:
    """Return a share as AMBER prints it.

    Args:
        started: the number of sums in `whole`; the official script starts each of them at 0.001.
    """
    return round(part / (whole + 0.001 * started) * 100, 1)
