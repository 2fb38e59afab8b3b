"""The interface of an edit on disk: the tensors of its base that it changes, and their values after the edit.

A delta, an adapter and a full output implement it. Merging, interpolating and editing a loaded model use only this
interface, so another kind of edit needs no change there.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qkedit.checkpoint.architecture.heads import HeadRows
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import UsageError
from qkedit.steering.manifest import is_adapter, read_manifest

if TYPE_CHECKING:
    from torch import Tensor


class EditSource(Protocol):
    """An edit that changes tensors of one base."""

    @property
    def name(self) -> str:
        """The user's name for the edit."""
        ...

    @property
    def files(self) -> CheckpointFiles:
        """The files of the edit, which an output must not replace."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The edit's manifest: its `tensors` lists the changed tensors with their earlier hashes."""
        ...

    def edited(self, tensor: TensorEdit, before: Tensor, query: HeadRows | None) -> Tensor:
        """Return the whole tensor after the edit, on the CPU in its storage dtype.

        Args:
            tensor: an entry of the manifest.
            before: the tensor of the base, already compared with the manifest.
            query: the rows of its query heads; None if the base has no known architecture.

        Raises:
            CheckpointError: the edit is damaged, or changes more than the heads it lists.
        """
        ...


def open_edit(place: str | Path) -> EditSource:
    """Open an edit that qkedit wrote: a delta, an adapter or a full output.

    Raises:
        CheckpointError: there is no edit, or the edit is damaged.
    """
    from qkedit.steering.sources.adapter_edit import adapter_edit
    from qkedit.steering.sources.stored_edit import stored_edit

    directory = Path(place).expanduser()
    manifest, files = read_manifest(directory), LocalFiles(directory)
    made = adapter_edit if is_adapter(files, manifest) else stored_edit
    return made(str(place), files, manifest)


def open_edits(places: Sequence[str | Path]) -> tuple[EditSource, ...]:
    """Open edits that are to be combined.

    Raises:
        UsageError: no edit is named, or one is named twice.
        CheckpointError: one of the places holds no edit, or a damaged one.
    """
    if not places:
        raise UsageError("no edit is named", where="edits", remedy="name the directory of one")
    sources = tuple(open_edit(place) for place in places)
    seen: dict[frozenset[tuple[str, str]], str] = {}
    for source in sources:
        identity = frozenset((tensor.name, tensor.sha256_after) for tensor in source.manifest.tensors)
        if identity in seen:
            raise UsageError(
                f"is the same edit as {seen[identity]}",
                where=source.name,
                remedy="name each edit once; `qkedit interpolate` changes the strength of one",
            )
        seen[identity] = source.name
    return sources


def edits_identity(sources: Sequence[EditSource]) -> list[dict[str, str]]:
    """Return the identity of each edit for records of runs: the SHA-256 of all its changes."""
    identities = []
    for source in sources:
        lines = sorted(f"{tensor.sha256_after}  {tensor.name}\n" for tensor in source.manifest.tensors)
        identities.append({"sha256": sha256("".join(lines).encode()).hexdigest()})
    return identities
