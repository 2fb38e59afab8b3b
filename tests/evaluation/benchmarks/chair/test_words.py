"""Test the objects that a caption mentions: every quirk of CHAIR's rule, and a slow copy of its script."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkedit.errors import QkeditError, UsageError
from qkedit.evaluation.benchmarks.chair.words import (
    Reading,
    Synonyms,
    merged,
    read_synonyms,
    reader,
    reading_of,
    synonyms_in,
)

# A table with the two flaws of CHAIR's: two spaces before a word, and one at the end of a line.
TABLE = """person, man, baby, passenger, child, people
bus, minibus
train, locomotive
airplane, jet
dog, puppy
bird
motorcycle,  motor bike, motor cycle
sheep, lamb\x20
traffic light
wine glass
tie, bow, bow tie
cake,  cheesecake
chair, seat, stool
toilet
dining table, table
oven, stove, stove top oven
hot dog
teddy bear
bear
plate
orange
skis, ski
"""
SYNONYMS = synonyms_in(TABLE)

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
# Two words → the word that replaces both, copied from the script's list and rules.
_KEPT = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog,
cell phone, mobile phone, teddy bear, hair drier, potted plant, bow tie, laptop computer, home plate, train track"""
PAIRS = {pair.strip(): pair.strip() for pair in _KEPT.split(",")}
PAIRS |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
PAIRS |= {"passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet"}
PAIRS |= {"wine glas": "wine glass"}

_words = st.lists(
    st.sampled_from([*sorted({word for pair in PAIRS for word in pair.split()}), "a", "stool"]), max_size=9
)


def slow_merge(words: list[str]) -> list[str]:
    """Read one step at a time: the first two words as a pair if the table has it, else the first word."""
    if not words:
        return []
    together = PAIRS.get(" ".join(words[:2]))
    return [together, *slow_merge(words[2:])] if together else [words[0], *slow_merge(words[1:])]


def slow_mentions(words: list[str]) -> list[str]:
    """Return the official script's node words, by line of the table."""
    lines = [line.strip().split(", ") for line in TABLE.splitlines()]
    single = slow_merge(words)
    if "toilet" in single and "seat" in single:
        single = [word for word in single if word != "seat"]
    return [line[0] for word in single for line in lines if word in line]


@given(_words)
def test_pairs_are_merged_from_left_to_right(words: list[str]) -> None:
    single = merged(words)
    assert [word for word, _, _ in single] == slow_merge(words)
    assert [place for _, first, end in single for place in range(first, end)] == list(range(len(words)))
    for word, first, end in single:
        assert slow_merge(words[first:end]) == [word]
    reading = reading_of(words, SYNONYMS)
    assert list(reading.objects) == slow_mentions(words)
    assert reading.tokens == len(slow_merge(words))
    assert [SYNONYMS.object_of[word] for word in reading.words] == list(reading.objects)
    assert [slow_merge(words[first:end]) for first, end in reading.places] == [[word] for word in reading.words]


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_all_pairs_of_the_script_are_known(pair: str) -> None:
    assert merged(["a", *pair.split(), "a"]) == [("a", 0, 1), (PAIRS[pair], 1, 3), ("a", 3, 4)]


@pytest.mark.parametrize(
    ("words", "objects"),
    [
        ("home plate", []),
        ("train track", []),
        # The first pair uses the word that a second one would need.
        ("passenger train track", ["train"]),
        ("baby dog", ["dog"]),
        ("baby and dog", ["person", "dog"]),
        ("adult bear", ["bear"]),
        ("teddy bear", ["teddy bear"]),
        ("passenger jet", ["airplane"]),
        ("passenger bus", ["person", "bus"]),
        ("bow tie", ["tie"]),
        ("bow and tie", ["tie", "tie"]),
        ("toilet seat", ["toilet"]),
        ("seat of the toilet", ["toilet"]),
        ("toilet seat and seat and stool", ["toilet", "chair"]),
        ("seat", ["chair"]),
        ("wine glas", ["wine glass"]),
        # Three words are not a pair: `stove top oven` is never merged.
        ("stove top oven", ["oven", "oven"]),
        # Two spaces in the table hide the word.
        ("motor bike", []),
        ("motor cycle", ["motorcycle"]),
        ("cheesecake", []),
        ("lamb", ["sheep"]),
        ("dog dog puppy", ["dog", "dog", "dog"]),
        ("Dog", []),
    ],
)
def test_quirks_of_the_rule_are_kept(words: str, objects: list[str]) -> None:
    assert list(reading_of(words.split(), SYNONYMS).objects) == objects


@pytest.mark.parametrize(
    ("caption", "official", "wordnet"),
    [
        # The singular of `bus` is `bu`.
        ("A bus beside two buses.", ["bus"], ["bus", "bus"]),
        ("Two wine glasses and a wine glass.", ["wine glass", "wine glass"], ["wine glass", "wine glass"]),
        # WordNet has `men` itself, for a workforce.
        ("PEOPLE and men", ["person", "person"], ["person"]),
        ("The seats of the toilets", ["toilet"], ["toilet"]),
        ("Puppies; a dog's seat.", ["dog", "dog", "chair"], ["dog", "dog", "chair"]),
        ("an orange shirt", ["orange"], ["orange"]),
        # The lemma of a verb may be an object's word.
        ("he is seated, seating people", ["person"], ["chair", "chair", "person"]),
        ("", [], []),
        ("No objects here.\n\nNone.", [], []),
    ],
)
def test_objects_of_captions_in_both_variants(
    language: Path, caption: str, official: list[str], wordnet: list[str]
) -> None:
    assert list(reader(SYNONYMS, "official", language)(caption).objects) == official
    assert list(reader(SYNONYMS, "wordnet", language)(caption).objects) == wordnet


def test_tokens_are_counted_after_merging_pairs(language: Path) -> None:
    assert reader(SYNONYMS, "wordnet", language)("A hot dog, please.") == Reading(
        ("hot dog",), ("hot dog",), 5, ((1, 3),)
    )


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown variant 'opera'; choose one of official, wordnet"):
        reader(SYNONYMS, "opera")


def test_a_repeated_word_belongs_to_its_last_line() -> None:
    assert synonyms_in("a, x\n\nb, x\n") == Synonyms(("a", "b"), {"a": "a", "x": "b", "b": "b"})


def test_a_table_may_have_any_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    assert read_synonyms(file) == SYNONYMS
    file.write_text("\n \n")
    with pytest.raises(QkeditError, match="holds no words"):
        read_synonyms(file)
