"""Mutate JSON documents: values, keys, lengths of lists, the depth, and sometimes the text itself."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

from fuzzing.byte_strings import mutated
from fuzzing.strange import Raw, strange_text, strange_value

LONGEST = 1 << 20
_PLACE = re.compile('"\ue000([0-9]+)\ue000"')
Place = tuple[Any, Any]  # a list or dictionary, and an index or key in it


def mutated_tree(value: Any, random: Random, changes: int | None = None) -> Any:
    """Return a copy with one to three changes; it may hold `Raw` text, which `written` inserts as it is."""
    root = [copy.deepcopy(value)]
    for _ in range(changes or random.choice((1, 1, 1, 2, 3))):
        _change(root, random)
    return root[0]


def written(value: Any, random: Random) -> bytes:
    """Return a document, sometimes with faults in its text."""
    pieces: list[str] = []

    def placeheld(value: Any) -> Any:
        if isinstance(value, Raw):
            # Copies of a long list would make a document that is slow only because of its length.
            pieces.append(value.text if sum(map(len, pieces[-20:])) < LONGEST else "null")
            return f"\ue000{len(pieces) - 1}\ue000"
        if isinstance(value, dict):
            return {key: placeheld(entry) for key, entry in value.items()}
        return [placeheld(entry) for entry in value] if isinstance(value, list) else value

    text = json.dumps(placeheld(value), ensure_ascii=False)
    text = _PLACE.sub(lambda place: pieces[int(place[1])], text)
    if random.random() < 0.5:
        # A lone surrogate becomes its escape, as clients of other languages write it.
        text = "".join(f"\\u{ord(letter):04x}" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    content = text.encode("utf-8", "surrogatepass")
    return mutated(content, random) if random.random() < 0.1 else content


def mutated_json(value: Any, random: Random) -> bytes:
    """Return a changed document."""
    return written(mutated_tree(value, random), random)


def _change(root: list[Any], random: Random) -> None:
    places = list(_places(root))
    holder, key = random.choice(places)
    kind = random.randrange(9)
    if kind < 4:
        holder[key] = _near(holder[key], random) if kind == 0 else strange_value(random)
    elif kind == 4 and holder is not root:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        name = strange_text(random) if random.random() < 0.5 else f"{key}{random.choice(('', 's', '_', ' '))}"
        holder[name] = holder.pop(key)
    elif kind == 6:
        other, where = random.choice(places)
        holder[key] = copy.deepcopy(other[where])
    elif kind == 7:
        inner = holder[key]
        if isinstance(inner, list):
            inner.extend(copy.deepcopy(inner[: random.choice((1, 5, 100))]))
        elif isinstance(inner, dict):
            inner[strange_text(random)] = strange_value(random)
        else:
            holder[key] = [inner] * random.choice((0, 1, 2, 200))
    else:
        holder[key] = random.choice(([holder[key]], {"a": holder[key]}))


def _near(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, -value, value, 10**6))
    if isinstance(value, float):
        return value * random.choice((-1, 0, 2, 1e9))
    if isinstance(value, str):
        return value[: random.randrange(len(value) + 1)] + random.choice(("", strange_text(random)))
    if isinstance(value, list):
        return value[: random.randrange(len(value) + 1)]
    return strange_value(random)


def _places(holder: Any) -> Iterator[Place]:
    """Yield every place of a document; only some of them if there are many."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])
