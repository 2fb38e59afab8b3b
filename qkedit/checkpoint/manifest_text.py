"""The text of `qkedit.json`: one line per head, read in schema 1 and 2."""

from __future__ import annotations

import json
from typing import Any

from qkedit.checkpoint.record_reader import quoted
from qkedit.errors import CheckpointError
from qkedit.strict_text import parse_json

SCHEMA = 2
WRITE_AGAIN = "write the output again"


def as_schema_2(content: bytes, where: str) -> Any:
    """Return the content of a manifest, converted to schema 2.

    Raises:
        CheckpointError: the content is not JSON, not a manifest, or of a later schema.
    """
    try:
        found = parse_json(content, file_names=True)
    except ValueError as error:
        raise CheckpointError(f"is not a manifest ({error})", where=where, remedy=WRITE_AGAIN) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"is not a manifest (its schema is {quoted(schema)})", where=where, remedy=WRITE_AGAIN)
    if schema > SCHEMA:
        raise CheckpointError(f"was written by a later qkedit (schema {schema})", where=where, remedy="update qkedit")
    return _migrated(found) if schema == 1 else found


def _migrated(manifest: dict[str, Any]) -> dict[str, Any]:
    """Convert a manifest of schema 1 to schema 2; malformed parts are kept for the reader to refuse.

    Schema 1 called both the kept share and the share that queries cannot write `residual`, and did not hash files.
    """
    options, tensors = manifest.get("options"), manifest.get("tensors")
    changed = {"options": _renamed(options, "residual", "retain")}
    if isinstance(tensors, list):
        changed["tensors"] = [
            {**tensor, "heads": [_renamed(head, "residual", "unrealized_share") for head in tensor["heads"]]}
            if isinstance(tensor, dict) and isinstance(tensor.get("heads"), list)
            else tensor
            for tensor in tensors
        ]
    return {**manifest, **changed, "generated": {}}


def _renamed(value: Any, old: str, new: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {new if key == old else key: item for key, item in value.items() if key != new}


def dumped(value: Any, indent: str) -> str:
    """Return JSON in which each value without nested objects is on one line."""
    if not _holds_objects(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(name, ensure_ascii=False)}: {dumped(item, deeper)}" for name, item in value.items()]
    else:
        items = [dumped(item, deeper) for item in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{last}"


def _holds_objects(value: Any) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(child, dict) or _holds_objects(child) for child in children)
