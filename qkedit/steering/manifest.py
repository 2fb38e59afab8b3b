"""`qkedit.json`: what was done to a checkpoint, to which tensors, and how each can be checked.

It lists every file of the full directory, so that a later run knows which ones it may replace. It holds nothing that
differs between two runs on the same inputs (no times, no paths), so an output is reproducible to the byte.
Steering an already steered directory keeps the earlier manifests under `history`, oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import DELTA_FILE as DELTA_FILE
from qkedit.checkpoint.contents import MANIFEST_FILE as MANIFEST_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.errors import CheckpointError
from qkedit.spectral.options import Channel, Control
from qkedit.steering.edit_record import EditRecord, HeadEdit
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.plan import SteerPlan
from qkedit.strict_text import parse_json
from qkedit.version import __version__

SCHEMA = 1
# What schema 1 calls a field of a head.
_RECORDED = {"unrealized_share": "residual"}


def make_manifest(
    plan: SteerPlan, device: str, records: Sequence[EditRecord], sha256_after: dict[str, str]
) -> dict[str, Any]:
    """Return the manifest of one edit."""
    from importlib.metadata import version

    previous = previous_manifest(plan.checkpoint)
    return {
        "schema": SCHEMA,
        "tool": {"name": "qkedit", "version": __version__},
        "libraries": {name: version(name) for name in ("torch", "numpy", "accelerate")},
        "base": {"model": plan.checkpoint.files.name, "revision": plan.checkpoint.files.revision},
        **({"understood_as": plan.stack.understood_as} if plan.stack.understood_as else {}),
        "options": plan.options.recorded() | {"device": device},
        "tensors": [_tensor(record, sha256_after[record.tensor.name]) for record in records],
        "files": files_of_output(plan.checkpoint),
        "history": [*previous.pop("history"), previous] if previous else [],
    }


def _tensor(record: EditRecord, sha256_after: str) -> dict[str, Any]:
    entry = record.tensor
    return {
        "name": entry.name,
        "shard": entry.shard,
        "layer": record.layer,
        "form": record.form,
        **({"norm": record.norm} if record.norm else {}),
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "sha256_before": record.sha256_before,
        "sha256_after": sha256_after,
        "heads": [
            {
                _RECORDED.get(name, name): value
                for name, value in asdict(head).items()
                if value is not None or name == "gap"
            }
            for head in record.heads
        ],
    }


def records_of(manifest: dict[str, Any], tensors: dict[str, TensorEntry]) -> list[EditRecord]:
    """Return the records that a manifest was made from, for tensors that stand where `tensors` says.

    Raises:
        CheckpointError: a tensor of the manifest is not among `tensors`, or not of the same dtype and shape.
    """
    known = {field.name for field in fields(HeadEdit)}
    records = []
    for tensor in manifest["tensors"]:
        entry = tensors.get(tensor["name"])
        if entry is None or (entry.dtype, list(entry.shape)) != (tensor["dtype"], tensor["shape"]):
            raise CheckpointError(
                f"tensor {tensor['name']} is missing or of another dtype or shape",
                where="base",
                remedy="give the model that the edit was made from",
            )
        heads = tuple(
            HeadEdit(
                **{name: head[_RECORDED.get(name, name)] for name in known if _RECORDED.get(name, name) in head}
                | {"suppressed": tuple(head["suppressed"])}
            )
            for head in tensor["heads"]
        )
        form, norm = tensor.get("form", ""), tensor.get("norm")
        records.append(EditRecord(tensor["layer"], form, norm, entry, tensor["sha256_before"], heads))
    return records


def dump_manifest(manifest: dict[str, Any]) -> bytes:
    """Return the manifest's bytes: one line a head, so that it can be read and compared with `diff`."""
    # A directory's name may hold bytes that are no UTF-8; backslashreplace spells them as JSON escapes.
    return (_dump(manifest, "") + "\n").encode(errors="backslashreplace")


def _dump(value: Any, indent: str) -> str:
    """Return JSON in which whatever holds no further object stands on one line."""
    if not _holds_objects(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{json.dumps(name, ensure_ascii=False)}: {_dump(item, deeper)}" for name, item in value.items()]
    else:
        items = [_dump(item, deeper) for item in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(items) + f"\n{indent}{last}"


def _holds_objects(value: Any) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(child, dict) or _holds_objects(child) for child in children)


def read_manifest_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the manifest that a checkpoint carries, None where it was never steered."""
    files = checkpoint.files
    if MANIFEST_FILE not in checkpoint.side_files:
        return None
    return parse_manifest(files.read(MANIFEST_FILE, 0, files.sizes()[MANIFEST_FILE]), f"{files.name}/{MANIFEST_FILE}")


def previous_manifest(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the manifest of a base that was steered before, which the new one continues.

    Raises:
        CheckpointError: another file has the name that the manifest of the output needs.
    """
    try:
        return read_manifest_of(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            error.what, where=error.where, remedy="update qkedit, or remove or rename it if it is another program's"
        ) from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of an output directory. Raises CheckpointError where there is none."""
    try:
        content = (directory / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"there is no readable {MANIFEST_FILE}",
            where=str(directory),
            remedy="name a directory that qkedit wrote",
        ) from error
    return parse_manifest(content, str(directory / MANIFEST_FILE))


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Parse and check a manifest.

    Raises:
        CheckpointError: it is not JSON, of a later schema, or lacks what every manifest has.
    """
    try:
        manifest = parse_json(content, file_names=True)
    except ValueError as error:
        raise _broken(where) from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckpointError(f"was written by a later qkedit (schema {schema})", where=where, remedy="update qkedit")
    if not _fits(manifest, _FORM):
        raise _broken(where)
    names = [tensor["name"] for tensor in manifest["tensors"]]
    if not names or len(set(names)) < len(names) or not all(tensor["heads"] for tensor in manifest["tensors"]):
        raise _broken(where)
    options = manifest["options"]
    if options["channel"] not in get_args(Channel) or options["control"] not in get_args(Control):
        raise _broken(where)
    if options["channel"] != "full" and not _fits(manifest["tensors"], _OF_CHANNELS):
        raise _broken(where)
    return manifest


_OPTIONAL_NUMBER = (int, float, NoneType)
# What is read of a manifest later: objects with at least these fields, lists of such, values of these types.
_FORM: dict[str, Any] = {
    "schema": int,
    "tool": {"version": str},
    "base": {"model": str, "revision": (str, NoneType)},
    "options": {
        "k": int,
        "energy": _OPTIONAL_NUMBER,
        "residual": (int, float),
        "channel": str,
        "control": str,
        "seed": int,
    },
    "tensors": [
        {
            "name": str,
            "shard": str,
            "layer": int,
            "dtype": str,
            "shape": [int],
            "sha256_before": str,
            "sha256_after": str,
            "heads": [
                {
                    "head": int,
                    "key_head": int,
                    "suppressed": [(int, float)],
                    "energy_removed": (int, float),
                    "gap": _OPTIONAL_NUMBER,
                    "relative_change": (int, float),
                }
            ],
        }
    ],
    "history": [dict],
}


_OF_CHANNELS: Any = [{"heads": [{"residual": (int, float), "leak": (int, float)}]}]


def _fits(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and all(name in value and _fits(value[name], form[name]) for name in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    return isinstance(value, form) and not isinstance(value, bool)  # which is an int to Python


def _broken(where: str) -> CheckpointError:
    return CheckpointError("is not a complete manifest", where=where, remedy="write the output again")
