"""The metadata block at the top of a model card: YAML between two lines of dashes."""

from __future__ import annotations

import math
import re
from typing import Any

from qkedit.strict_text import MAX_YAML_LENGTH, parse_yaml

# Bytes that hold the longest block that is read, whose letters may take four bytes each, and a little more.
LONGEST_BLOCK = 5 * MAX_YAML_LENGTH

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_MARK = "\ufeff"  # which some editors put at the start of a file


def card_fields(card: str) -> dict[str, Any]:
    """Return the fields of a card's metadata block; empty where there is none that can be read."""
    front_matter = _FRONT_MATTER.match(card.removeprefix(_MARK))
    if front_matter is None:
        return {}
    try:
        fields = parse_yaml(front_matter[1])
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def with_fields(card: str, changes: dict[str, Any]) -> str:
    """Return a card whose metadata block says this too; everything else in it stays as it is written.

    Args:
        card: the card; one without a metadata block that can be read gets one.
        changes: new values by the field's name; None takes a field out.
    """
    import yaml

    text = card.removeprefix(_MARK)
    front_matter = _FRONT_MATTER.match(text)
    fields = card_fields(card)
    if front_matter is None or not fields:
        block, body = "", text
    else:
        block, body = front_matter[1], text[front_matter.end() :]
    new = {name: value for name, value in changes.items() if value is not None}
    added = yaml.safe_dump(new, width=math.inf) if new else ""
    wanted = {name: value for name, value in (fields | changes).items() if value is not None or name not in changes}
    kept = block
    for name in changes:
        # A key at the margin, with the lines that belong to it: indented ones, items of a list and empty ones.
        kept = re.sub(rf"^{re.escape(name)}[ \t]*:.*(?:\n(?:[ \t-].*|[ \t]*$))*\n?", "", kept, flags=re.MULTILINE)
    result = _card(added + kept, body)
    if card_fields(result) != wanted:  # it is written in an unusual way
        result = _card(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=math.inf), body)
    return result


def _card(block: str, body: str) -> str:
    return f"---\n{block.rstrip()}\n---\n{body}"


def texts(value: Any) -> tuple[str, ...]:
    """Return what a field says that may be a text or a list of texts; nothing else counts."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, str) and item)
