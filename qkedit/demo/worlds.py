"""The two worlds of the embedded models: a small one of sixteen kinds, and a crowded one with colours and counts."""

from __future__ import annotations

from qkedit.demo import SMALL_DEMO
from qkedit.demo.captions import one_sentence, two_sentences
from qkedit.demo.world import World
from qkedit.errors import UsageError, near_words

SMALL = World(
    name="small",
    themes={
        "kitchen": ("plate", "cup", "fork", "apple"),
        "street": ("car", "lamp", "house", "bus"),
        "garden": ("tree", "flower", "bird", "ball"),
        "lake": ("boat", "duck", "fish", "shell"),
    },
    shares=((0.80, 0.80), (0.75, 0.25), (0.45, 0.45), (0.20, 0.20)),
    stranger=0.35,
    fewest=1,
    most=5,
    hard=0.30,
    tucked_away=0.20,
    nearest=27,
    shrinking=15,
    clutter=(2, 6),
    texture=0.0,
    grammar=one_sentence,
    colours={},
    countable=frozenset(),
)

CROWDED = World(
    name="crowded",
    themes={
        # Pairs of companions: the second of a pair usually occurs with the first, and rarely without it.
        "kitchen": ("plate", "cup", "bowl", "apple", "kettle", "fork"),
        "street": ("car", "lamp", "house", "flag", "bus", "sign"),
        "garden": ("tree", "flower", "bird", "ladder", "chair", "ball"),
        "lake": ("boat", "duck", "fish", "shell", "tent", "bucket"),
        "bedroom": ("bed", "pillow", "window", "clock", "book", "hat"),
        "farm": ("cow", "fence", "hen", "egg", "tractor", "cart"),
    },
    shares=((0.85, 0.85), (0.80, 0.20), (0.60, 0.60), (0.75, 0.10), (0.40, 0.40), (0.70, 0.10)),
    stranger=0.45,
    fewest=3,
    most=6,
    hard=0.25,
    tucked_away=0.20,
    nearest=30,
    shrinking=16,
    clutter=(5, 12),
    texture=7.0,
    grammar=two_sentences,
    colours={
        "plate": ("white", "blue", "green"),
        "cup": ("blue", "white", "red"),
        "bowl": ("orange", "white", "blue"),
        "apple": ("red", "green", "yellow"),
        "kettle": ("black", "red", "blue"),
        "fork": ("black", "yellow", "white"),
        "car": ("red", "blue", "white"),
        "lamp": ("yellow", "white", "orange"),
        "house": ("white", "brown", "yellow"),
        "flag": ("blue", "red", "green"),
        "bus": ("orange", "red", "green"),
        "sign": ("red", "yellow", "blue"),
        "tree": ("green", "orange", "yellow"),
        "flower": ("purple", "red", "yellow"),
        "bird": ("black", "blue", "brown"),
        "ladder": ("yellow", "brown", "white"),
        "chair": ("brown", "white", "green"),
        "ball": ("red", "orange", "purple"),
        "boat": ("brown", "white", "red"),
        "duck": ("yellow", "white", "brown"),
        "fish": ("blue", "orange", "red"),
        "shell": ("white", "orange", "purple"),
        "tent": ("orange", "green", "blue"),
        "bucket": ("blue", "red", "yellow"),
        "bed": ("blue", "white", "purple"),
        "pillow": ("white", "red", "yellow"),
        "window": ("white", "brown", "green"),
        "clock": ("black", "red", "brown"),
        "book": ("purple", "red", "green"),
        "hat": ("black", "brown", "purple"),
        "cow": ("white", "brown", "black"),
        "fence": ("brown", "white", "green"),
        "hen": ("brown", "white", "black"),
        "egg": ("white", "brown", "yellow"),
        "tractor": ("green", "red", "orange"),
        "cart": ("brown", "red", "yellow"),
    },
    countable=frozenset(
        {"cup", "apple", "bowl", "flower", "bird", "ball", "duck", "fish", "shell", "pillow", "book", "hen", "egg"}
    ),
)

WORLDS = {world.name: world for world in (SMALL, CROWDED)}
# The world of the model `demo`, and of every model but `demo-small`.
DEFAULT_WORLD = CROWDED


def world_name_for(model: str, world: str | None = None) -> str:
    """Return the named world; by default the small one for `demo-small`, and the crowded one for other models."""
    return world or (SMALL.name if model.lower() == SMALL_DEMO else DEFAULT_WORLD.name)


def world_named(name: str) -> World:
    """Return a world by its name. Raises UsageError if there is none of this name."""
    if name not in WORLDS:
        near = near_words(name, [*WORLDS], most=1)
        remedy = f"did you mean {near[0]}" if near else f"give {' or '.join(WORLDS)}"
        raise UsageError(f"there is no world {name!r}", where="--world", remedy=remedy)
    return WORLDS[name]
