"""The metadata block at the top of a model card: YAML between two lines of dashes."""

from __future__ import annotations

import math
import re
from typing import Any

from qkedit.strict_text import MAX_YAML_LENGTH, parse_yaml

# Enough bytes for the longest block that is read: a character may take four bytes.
LONGEST_BLOCK = 5 * MAX_YAML_LENGTH

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_MARK = "\ufeff"  # some editors put it at the start of a file


def card_fields(card: str) -> dict[str, Any]:
    """Return the fields of a card's metadata block; empty if there is no readable block."""
    front_matter = _FRONT_MATTER.match(card.removeprefix(_MARK))
    if front_matter is None:
        return {}
    try:
        fields = parse_yaml(front_matter[1])
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def with_fields(card: str, changes: dict[str, Any]) -> str:
    """Return a card with these fields changed in its metadata block; everything else stays byte for byte.

    Args:
        card: the card; without a readable metadata block, it gets one.
        changes: new values by field name; None removes a field.
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
        # A key at the margin with its lines: indented ones, items of a list, and empty ones.
        kept = re.sub(rf"^{re.escape(name)}[ \t]*:.*(?:\n(?:[ \t-].*|[ \t]*$))*\n?", "", kept, flags=re.MULTILINE)
    result = _card(added + kept, body)
    if card_fields(result) != wanted:  # the block has an unusual form
        result = _card(yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=math.inf), body)
    return result


def _card(block: str, body: str) -> str:
    return f"---\n{block.rstrip()}\n---\n{body}"


def texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a field that may be a text or a list of texts; anything else is ignored."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, str) and item)
