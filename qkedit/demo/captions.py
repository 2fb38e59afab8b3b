"""The grammars of captions: a sentence that lists the objects, or two that also name colours, counts and sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qkedit.demo.scene_objects import SceneObject

# Writes the caption of a scene from its place, its objects from the front to the back, and the width of its image.
Grammar = Callable[[str, Sequence[SceneObject], int], str]

NUMBERS = ("no", "one", "two", "three")
SIDES = ("on the left", "in the middle", "on the right")
_PLURALS = {"bus": "buses", "fish": "fish"}


def one_sentence(theme: str, things: Sequence[SceneObject], width: int) -> str:
    """Return a sentence that names the place and every object, including hidden ones, from front to back."""
    return f"A {theme} with {_listed([with_article(thing.kind) for thing in things])}."


def two_sentences(theme: str, things: Sequence[SceneObject], width: int) -> str:
    """Return a sentence about the nearer half of the objects, and one about the others and their sides.

    Each object has its colour, and a group its number. Every kind is named once, hidden ones too. The scene must have
    at least three kinds, so that each sentence has its objects and the first one several.
    """
    near = (len(things) + 1) // 2
    front, back = things[:near], things[near:]
    shown = _listed([noun_phrase(thing) for thing in front])
    placed = _listed([f"{noun_phrase(thing)} {side(thing, width)}" for thing in back])
    verb = "are" if back[0].count > 1 else "is"
    return f"A {theme} with {shown} in front. Behind them there {verb} {placed}."


def noun_phrase(thing: SceneObject) -> str:
    """Return the words for an object or group: "a white plate", "two red apples"."""
    named = f"{thing.colour} {plural(thing.kind) if thing.count > 1 else thing.kind}".strip()
    return f"{NUMBERS[thing.count]} {named}" if thing.count > 1 else with_article(named)


def side(thing: SceneObject, width: int) -> str:
    """Return the third of the image that holds an object's middle, as one of `SIDES`."""
    left, _, right, _ = thing.box
    return SIDES[min(2, int(3 * (left + right) / 2 / width))]


def plural(kind: str) -> str:
    """Return the plural of a kind."""
    return _PLURALS.get(kind, f"{kind}s")


def with_article(words: str) -> str:
    """Return a word or phrase with its indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(phrases: Sequence[str]) -> str:
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last
