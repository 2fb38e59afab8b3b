"""Make the manifest of an edit, and read the manifest of a directory or a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.checkpoint.contents import DELTA_FILE as DELTA_FILE
from qkedit.checkpoint.contents import MANIFEST_FILE as MANIFEST_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles
from qkedit.checkpoint.manifest_file import Derivation, Manifest, RecordedBase, Tool
from qkedit.errors import CheckpointError
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.outputs.writer import Written
from qkedit.steering.plan import SteerPlan
from qkedit.strict_text import parse_json
from qkedit.version import __version__


def make_manifest(plan: SteerPlan, device: str, written: Written) -> Manifest:
    """Return the manifest of one edit, before any file is generated."""
    return Manifest(
        tool=Tool(version=__version__),
        libraries=_libraries(),
        base=RecordedBase(model=plan.checkpoint.files.name, revision=plan.checkpoint.files.revision),
        understood_as=plan.stack.understood_as or None,
        options=replace(plan.recorded_options(), device=device),
        tensors=written.tensor_edits(),
        adapter=written.adapter,
        files=tuple(files_of_output(plan.checkpoint)),
        history=earlier_manifests(plan.checkpoint),
    )


def derived_manifest(
    checkpoint: Checkpoint,
    derivation: Derivation,
    written: Written,
    edits: Sequence[Manifest] = (),
    strength: float | None = None,
) -> Manifest:
    """Return the manifest of an edit that was made from other edits, or from two checkpoints.

    Args:
        checkpoint: the base.
        derivation: the way in which the edit was made.
        written: the written tensors.
        edits: the manifests of the edits it was made from; their order does not matter.
        strength: the factor by which the change was multiplied.
    """
    parts = sorted(edits, key=lambda edit: edit.to_json())
    return Manifest(
        tool=Tool(version=__version__),
        libraries=_libraries(),
        base=RecordedBase(model=checkpoint.files.name, revision=checkpoint.files.revision),
        understood_as=next((edit.understood_as for edit in parts if edit.understood_as), None),
        derivation=derivation,
        made_of=tuple(map(_without_history, parts)) or None,
        strength=strength,
        tensors=written.tensor_edits(),
        files=tuple(files_of_output(checkpoint)),
        history=earlier_manifests(checkpoint),
    )


def _without_history(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.as_dict().items() if key != "history"}


def _libraries() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "numpy", "accelerate")}


def records_of(manifest: Manifest, tensors: dict[str, TensorEntry]) -> list[EditRecord]:
    """Return the records that a manifest was made from, for tensors at the places in `tensors`.

    Raises:
        CheckpointError: a tensor of the manifest is not among `tensors`, or not of the same dtype and shape.
    """
    records = []
    for tensor in manifest.tensors:
        entry = tensors.get(tensor.name)
        if entry is None or (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise CheckpointError(
                f"tensor {tensor.name} is missing or of another dtype or shape",
                where="base",
                remedy="give the model that the edit was made from",
            )
        records.append(EditRecord(tensor.layer, tensor.form, tensor.norm, entry, tensor.sha256_before, tensor.heads))
    return records


def is_adapter(files: CheckpointFiles, manifest: Manifest) -> bool:
    """Return whether an output is an adapter; a full directory made from one keeps the adapter's manifest fields."""
    return manifest.adapter is not None and CONFIG_FILE not in files.sizes()


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of an output directory. Raises CheckpointError if there is none."""
    try:
        path = directory / MANIFEST_FILE
        if path.exists() and not path.is_file():  # reading a pipe or a device might never end
            raise OSError("not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"there is no readable {MANIFEST_FILE}",
            where=str(directory),
            remedy="name a directory that qkedit wrote",
        ) from error
    return Manifest.from_json(content, str(directory / MANIFEST_FILE))


def read_manifest_of(checkpoint: Checkpoint) -> Manifest | None:
    """Return the manifest that a checkpoint carries, None if it was never edited."""
    content = _content(checkpoint)
    return None if content is None else Manifest.from_json(content, _where(checkpoint))


def earlier_manifests(checkpoint: Checkpoint) -> tuple[dict[str, Any], ...]:
    """Return the manifests of a base that was edited before, as they were written, oldest first.

    Raises:
        CheckpointError: another file has the name that the manifest of the output needs.
    """
    content = _content(checkpoint)
    if content is None:
        return ()
    try:
        Manifest.from_json(content, _where(checkpoint))
    except CheckpointError as error:
        raise CheckpointError(
            error.what, where=error.where, remedy="update qkedit; or, if another program wrote it, remove or rename it"
        ) from error
    last: dict[str, Any] = parse_json(content, file_names=True)
    return (*last.pop("history"), last)


def _content(checkpoint: Checkpoint) -> bytes | None:
    if MANIFEST_FILE not in checkpoint.side_files:
        return None
    return checkpoint.files.read(MANIFEST_FILE, 0, checkpoint.files.sizes()[MANIFEST_FILE])


def _where(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.files.name}/{MANIFEST_FILE}"
