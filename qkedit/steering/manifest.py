"""`qkedit.json`: what was done to a checkpoint, to which tensors, and how each can be checked.

It holds nothing that differs between two runs on the same inputs (no times, no paths), so an output is reproducible
to the byte. Steering an already steered directory keeps the earlier manifests under `history`, oldest first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qkedit
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.header import TensorEntry
from qkedit.errors import CheckpointError
from qkedit.steering.plan import SteerPlan

if TYPE_CHECKING:
    from qkedit.steering.stream import EditRecord

MANIFEST_FILE = "qkedit.json"
DELTA_FILE = "qkedit-delta.safetensors"  # holds the edited tensors alone, beside the manifest
SCHEMA = 1


def make_manifest(
    plan: SteerPlan, device: str, records: Sequence[EditRecord], sha256_after: dict[str, str]
) -> dict[str, Any]:
    """Return the manifest of one edit."""
    from importlib.metadata import version

    previous = read_manifest_of(plan.checkpoint)
    return {
        "schema": SCHEMA,
        "tool": {"name": "qkedit", "version": qkedit.__version__},
        "libraries": {name: version(name) for name in ("torch", "numpy", "accelerate")},
        "base": {"model": plan.checkpoint.files.name, "revision": plan.checkpoint.files.revision},
        "options": plan.options.recorded() | {"device": device},
        "tensors": [_tensor(record, sha256_after[record.tensor.name]) for record in records],
        "history": [*previous.pop("history"), previous] if previous else [],
    }


def _tensor(record: EditRecord, sha256_after: str) -> dict[str, Any]:
    entry = record.tensor
    return {
        "name": entry.name,
        "shard": entry.shard,
        "layer": record.layer,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "sha256_before": record.sha256_before,
        "sha256_after": sha256_after,
        "heads": [
            {name: value for name, value in asdict(head).items() if value is not None or name == "gap"}
            for head in record.heads
        ],
    }


def records_of(manifest: dict[str, Any], tensors: dict[str, TensorEntry]) -> list[EditRecord]:
    """Return the records that a manifest was made from, for tensors that stand where `tensors` says.

    Raises:
        CheckpointError: a tensor of the manifest is not among `tensors`, or not of the same dtype and shape.
    """
    from qkedit.steering.stream import EditRecord, HeadEdit

    records = []
    for tensor in manifest["tensors"]:
        entry = tensors.get(tensor["name"])
        if entry is None or (entry.dtype, list(entry.shape)) != (tensor["dtype"], tensor["shape"]):
            raise CheckpointError(
                f"tensor {tensor['name']} is missing or of another dtype or shape",
                where="base",
                remedy="give the model that the edit was made from",
            )
        heads = tuple(HeadEdit(**{**head, "suppressed": tuple(head["suppressed"])}) for head in tensor["heads"])
        records.append(EditRecord(tensor["layer"], entry, tensor["sha256_before"], heads))
    return records


def dump_manifest(manifest: dict[str, Any]) -> bytes:
    """Return the manifest's bytes: one line a head, so that it can be read and compared with `diff`."""
    lines = json.dumps(manifest | {"tensors": None}, indent=2, ensure_ascii=False)
    tensors = []
    for tensor in manifest["tensors"]:
        heads = ",\n".join("        " + json.dumps(head, ensure_ascii=False) for head in tensor["heads"])
        rest = json.dumps(tensor | {"heads": None}, indent=2, ensure_ascii=False).replace("\n", "\n    ")
        tensors.append("    " + rest.replace('"heads": null', f'"heads": [\n{heads}\n      ]'))
    block = ",\n".join(tensors)
    return (lines.replace('"tensors": null', f'"tensors": [\n{block}\n  ]', 1) + "\n").encode()


def read_manifest_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the manifest that a checkpoint carries, None where it was never steered."""
    files = checkpoint.files
    if MANIFEST_FILE not in checkpoint.side_files:
        return None
    return parse_manifest(files.read(MANIFEST_FILE, 0, files.sizes()[MANIFEST_FILE]), f"{files.name}/{MANIFEST_FILE}")


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
        manifest = json.loads(content)
        if manifest["schema"] > SCHEMA:
            raise CheckpointError(
                f"was written by a later qkedit (schema {manifest['schema']})", where=where, remedy="update qkedit"
            )
        complete = (
            isinstance(manifest["base"]["model"], str)
            and isinstance(manifest["options"], dict)
            and all(
                isinstance(tensor[name], kind)
                for tensor in manifest["tensors"]
                for name, kind in _TENSOR_FIELDS.items()
            )
            and isinstance(manifest["history"], list)
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(where) from error
    if not complete:
        raise _broken(where)
    return manifest


_TENSOR_FIELDS = {
    "name": str,
    "shard": str,
    "layer": int,
    "dtype": str,
    "shape": list,
    "sha256_before": str,
    "sha256_after": str,
    "heads": list,
}


def _broken(where: str) -> CheckpointError:
    return CheckpointError("is no complete manifest", where=where, remedy="write the output again")
