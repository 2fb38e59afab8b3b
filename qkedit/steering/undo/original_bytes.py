"""Where the bytes from before an edit come from: kept beside the output, or the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import ORIGINALS_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError, UsageError
from qkedit.steering.base import chosen_base
from qkedit.steering.engine.reading import piece_size, tensor_pieces, tensors_of, whole_file
from qkedit.steering.manifest import earlier_manifests
from qkedit.steering.outputs.names import CARD_FILE, files_giving_way, last_base_card


@dataclass(frozen=True)
class OriginalBytes:
    """What an edit replaced, as byte ranges: edited tensors, and the card and manifest that gave way to the output's.

    Attributes:
        files: hold the ranges.
        ranges: of each tensor, and of each file of the base that gave way, by name.
        base: the base, where it is at hand and not only what was kept of it.
    """

    files: CheckpointFiles
    ranges: Mapping[str, TensorEntry]
    base: Checkpoint | None

    def of(self, tensor: TensorEdit) -> TensorEntry:
        """Return where an edited tensor stood. Raises CheckpointError where it is not, or of another form."""
        entry = self.ranges.get(tensor.name)
        if entry is None or (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise self.not_the_original(tensor)
        return entry

    def file(self, name: str) -> bytes | None:
        """Return the content of a file that gave way; None where the base had none of that name."""
        entry = self.ranges.get(name)
        return b"".join(map(bytes, tensor_pieces(self.files, entry, piece_size(self.files)))) if entry else None

    def not_the_original(self, tensor: TensorEdit) -> CheckpointError:
        """Return the error for a tensor that is not what the manifest says it was before the edit."""
        where = self.files.name if self.base is not None else ORIGINALS_FILE
        return CheckpointError(
            f"tensor {tensor.name} is not the one that was edited",
            where=where,
            remedy="name the model that was edited with --base, at the same revision",
        )


def original_bytes(
    files: LocalFiles, manifest: Manifest, base: str | None, revision: str | None, *, intact: bool
) -> OriginalBytes:
    """Find the original bytes of an output: in the base that is named, else kept beside it, else in the recorded base.

    Args:
        files: of the output.
        manifest: its manifest.
        base: the model that was edited, if the user names it.
        revision: of it on the hub.
        intact: whether what was kept has the hash in the manifest.

    Raises:
        UsageError: nothing was kept, and nobody says which model was edited.
        CheckpointError: what was kept is damaged, or the base is not a sound checkpoint.
    """
    kept = ORIGINALS_FILE in manifest.generated
    if kept and base is None and revision is None and ORIGINALS_FILE in files.sizes():
        if not intact:
            raise CheckpointError(
                "is damaged", where=ORIGINALS_FILE, remedy="name the model that was edited with --base"
            )
        return OriginalBytes(files, tensors_of(files, ORIGINALS_FILE), None)
    found = chosen_base(manifest, base, revision)
    if found is None:
        raise UsageError(
            f"{ORIGINALS_FILE} is missing" if kept else "no original bytes were kept",
            where=str(files.directory),
            remedy="name the model that was edited with --base",
        )
    checkpoint = found.open()
    if earlier_manifests(checkpoint) != manifest.history:
        raise CheckpointError(
            "is not the model that was edited: it carries other edits than the manifest lists as earlier ones",
            where=checkpoint.files.name,
            remedy="name the model as it was before the last edit, which alone is undone",
        )
    sizes = checkpoint.files.sizes()
    gave_way = {file: whole_file(file, sizes) for file in files_giving_way(checkpoint)}
    return OriginalBytes(checkpoint.files, {**gave_way, **checkpoint.tensors}, checkpoint)


def card_of_base(manifest: Manifest, originals: OriginalBytes) -> str | None:
    """Return under which name the base's card stands in an output; None where it is not there.

    It was given the first name of its series that was free, so it has the last one that the manifest lists. Of a base
    that was steered itself, the card is not in the output.
    """
    if manifest.history or CARD_FILE not in originals.ranges:
        return None
    return last_base_card(manifest.files)
