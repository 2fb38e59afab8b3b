"""Find the bytes from before an edit: kept next to the output, or in the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import MANIFEST_FILE, ORIGINALS_FILE
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError, UsageError
from qkedit.steering.base import chosen_base
from qkedit.steering.engine.reading import piece_size, tensor_pieces, tensors_of, whole_file
from qkedit.steering.manifest import earlier_manifests
from qkedit.steering.outputs.names import CARD_FILE, files_giving_way, name_in_output

_A_CARD = re.compile(r"README(\.base)*\.md")


@dataclass(frozen=True)
class OriginalBytes:
    """The byte ranges that an edit replaced: edited tensors, and the card and manifest replaced by the output's.

    Attributes:
        files: the files that hold the ranges.
        tensors: the range of each tensor, by name.
        gave_way: the range of each file of the base that a file of the output replaced, by name.
        card: the name of the base's card in the output; None if the output does not hold it.
        base: the base; None if only the kept bytes are available.
    """

    files: CheckpointFiles
    tensors: Mapping[str, TensorEntry]
    gave_way: Mapping[str, TensorEntry]
    card: str | None
    base: Checkpoint | None

    def of(self, tensor: TensorEdit) -> TensorEntry:
        """Return the original place of an edited tensor. Raises CheckpointError if it is missing or unlike it."""
        entry = self.tensors.get(tensor.name)
        if entry is None or (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise self.not_the_original(tensor)
        return entry

    def file(self, name: str) -> bytes | None:
        """Return the content of a replaced file; None if the base had no file of that name."""
        entry = self.gave_way.get(name)
        return b"".join(map(bytes, tensor_pieces(self.files, entry, piece_size(self.files)))) if entry else None

    def not_the_original(self, tensor: TensorEdit) -> CheckpointError:
        """Return the error for a tensor that is not the recorded original."""
        where = self.files.name if self.base is not None else ORIGINALS_FILE
        return CheckpointError(
            f"tensor {tensor.name} is not the one that was edited",
            where=where,
            remedy="name the model that was edited with --base, at the same revision",
        )


def original_bytes(
    files: LocalFiles, manifest: Manifest, base: str | None, revision: str | None, *, intact: bool
) -> OriginalBytes:
    """Find the original bytes of an output: in the named base, else next to the output, else in the recorded base.

    Args:
        files: the files of the output.
        manifest: the manifest of the output.
        base: the model that was edited, if the user names it.
        revision: the branch, tag or commit of a base on the hub.
        intact: whether the kept file has the hash in the manifest.

    Raises:
        UsageError: no bytes were kept, and the edited model is not known.
        CheckpointError: the kept file is damaged, or the base is not a sound checkpoint.
    """
    kept = ORIGINALS_FILE in manifest.generated
    if kept and base is None and revision is None and ORIGINALS_FILE in files.sizes():
        if not intact:
            raise CheckpointError(
                "is damaged", where=ORIGINALS_FILE, remedy="name the model that was edited with --base"
            )
        return _kept_beside(files)
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
            "is not the model that was edited: its earlier edits differ from those in the manifest",
            where=checkpoint.files.name,
            remedy="name the model as it was before the last edit; only that edit is undone",
        )
    sizes, gave_way = checkpoint.files.sizes(), files_giving_way(checkpoint)
    card = name_in_output(checkpoint, CARD_FILE) if CARD_FILE in gave_way else None
    ranges = {file: whole_file(file, sizes) for file in gave_way}
    return OriginalBytes(checkpoint.files, checkpoint.tensors, ranges, card, checkpoint)


def _kept_beside(files: LocalFiles) -> OriginalBytes:
    """Return the original bytes that `KeepingOriginals` wrote; a card that the output holds has its name there."""
    kept = tensors_of(files, ORIGINALS_FILE)
    named = next(filter(_A_CARD.fullmatch, kept), None)
    gave_way = {} if named is None else {CARD_FILE: kept[named]}
    if MANIFEST_FILE in kept:
        gave_way[MANIFEST_FILE] = kept[MANIFEST_FILE]
    return OriginalBytes(files, kept, gave_way, None if named == CARD_FILE else named, None)
