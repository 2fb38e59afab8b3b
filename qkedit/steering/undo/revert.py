"""Undo the last edit of a full output: restore the model that it was made from, byte for byte.

The restored directory is staged next to its target and put there by one rename, like every output, so a run that is
killed leaves the output unchanged. In place, every file that the edit did not change is taken over by a hard link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE, MANIFEST_FILE, ORIGINALS_FILE, PLUGINS_FILE, is_hidden_file
from qkedit.checkpoint.io.copying import LinkMode, clone_or_reserve, complement, copy_ranges
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.ownership import files_by_owner, shown
from qkedit.checkpoint.io.source import LocalFiles, snapshot_of
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.checkpoint.manifest_file import Manifest
from qkedit.errors import CheckpointError, UsageError, VerificationError, counted
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.reading import piece_size, pieces, same_bytes, sha256_of
from qkedit.steering.manifest import read_manifest, records_of
from qkedit.steering.outputs.checks import check_headers
from qkedit.steering.outputs.disk_space import refuse_without_room
from qkedit.steering.outputs.names import CARD_FILE
from qkedit.steering.outputs.tensors import copy_tensor, opened_for_writing, write_file
from qkedit.steering.steer_options import OutputOptions
from qkedit.steering.undo.mirror import copy_some, link_all, names_below
from qkedit.steering.undo.original_bytes import OriginalBytes, original_bytes

_LINKED, _COPIED = "hard", "auto"


@dataclass(frozen=True)
class RevertReport:
    """The result of `revert`.

    Attributes:
        out: the directory that holds the model from before the edit.
        base: the model that was edited, as the manifest names it.
        bytes_from: the source of the original bytes: the kept file, or a model.
        tensors: the number of restored tensors.
        bytes_restored: the number of their bytes.
        files_compared: the number of whole files compared with the base; 0 if the base is not a local directory.
        edits_left: the number of earlier edits that the restored model still has.
        differing: files that differ from the base's and were left unchanged because of `force`.
    """

    out: Path
    base: str
    bytes_from: str
    tensors: int
    bytes_restored: int
    files_compared: int
    edits_left: int
    differing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return asdict(self) | {"out": str(self.out)}


def revert(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
    fsync: bool = True,
    progress: Progress | None = None,
) -> RevertReport:
    """Undo the last edit of a full output: restore the model that it was made from, byte for byte.

    The original bytes come from `base` if it is named, else from those that `keep_original` kept in the output, else
    from the recorded base, of which only the edited tensors are fetched. Each tensor is compared with its SHA-256
    from before the edit; where the base is a local directory, every file is compared with it.

    Args:
        directory: a full output of `steer` or `apply`; other files in it stay.
        base: the model that was edited: a directory, a hub id, an alias or `demo`.
        revision: the branch, tag or commit of a base on the hub; by default the one in the manifest.
        out: write the restored model to this directory; by default it takes the place of the output.
        overwrite: replace an earlier output at `out`, if nothing else lies in it.
        force: continue even if the output was changed since it was written, and replace whatever is at `out`.
        fsync: wait until the disk holds the result.
        progress: called as the work advances.

    Raises:
        UsageError: no original bytes were found, or files were changed since they were written.
        CheckpointError: the directory is not a full output, or the base is not the model that was edited.
        VerificationError: a restored file differs from the base's.
        QkeditError: as for `steer`. After any of these errors the output is unchanged.

    Example:
        >>> qkedit.steer("demo", out="./edited", keep_original=True)
        >>> qkedit.revert("./edited").tensors
        4
    """
    files, progress = LocalFiles(Path(directory)), progress or Silent()
    manifest = read_manifest(files.directory)
    output = _output(files, None if out is None else Path(out), overwrite, force, fsync)
    edited = _opened(files)
    changed = files_by_owner(files.directory).changed
    originals = original_bytes(
        files, manifest, None if base is None else str(base), revision, intact=ORIGINALS_FILE not in changed
    )
    undoing = _Undoing(files, manifest, edited, originals)
    if not force:
        undoing.refuse_changes(changed)
    in_place = out is None
    sources = [] if in_place else [files.directory]
    if isinstance(originals.files, LocalFiles) and originals.base is not None:
        sources.append(originals.files.directory)
    found = names_below(files.directory)
    progress.start(len(undoing.places), sum(edited.shards[shard].size for shard in undoing.touched))
    with StagedDirectory(
        output.out, overwrite=overwrite or in_place, force=force or in_place, sources=sources
    ) as staged:
        refuse_without_room(staged.path, edited, undoing.places, output)
        if in_place:
            link_all(files.directory, staged.path, undoing.gone | set(undoing.touched), progress.bytes_done)
        else:
            taken = {*manifest.files} & found - undoing.gone - set(undoing.touched)
            copy_some(files, sorted(taken), staged.path, progress.bytes_done)
        undoing.write(staged.path, progress)
        check_headers(staged.path, edited, undoing.touched)
        compared, differing = _compared(staged.path, originals.base, progress.bytes_done)
        if differing and not force:
            raise VerificationError(
                f"{counted(len(differing), 'file')} would differ from the base's: {shown(differing)}",
                where=str(files.directory),
                remedy="nothing was changed; put the base's files there, or keep these with --force",
                mismatches=differing,
            )
        files.check_unchanged()
        originals.files.check_unchanged()
        if names_below(files.directory) != found:
            raise CheckpointError(
                "files were added or removed meanwhile", where=str(files.directory), remedy="run again"
            )
        staged.commit(fsync=fsync)
    return RevertReport(
        out=output.out,
        base=manifest.base.model,
        bytes_from=ORIGINALS_FILE if originals.base is None else originals.files.name,
        tensors=len(undoing.places),
        bytes_restored=sum(place.nbytes for place in undoing.places.values()),
        files_compared=compared,
        edits_left=len(manifest.history),
        differing=differing,
    )


@dataclass(frozen=True)
class _Undoing:
    """An output, its edited tensors, and their original bytes."""

    files: LocalFiles
    manifest: Manifest
    edited: Checkpoint
    originals: OriginalBytes

    @cached_property
    def places(self) -> dict[str, TensorEntry]:
        """The edited tensors as stored in the output, by name."""
        return {record.tensor.name: record.tensor for record in records_of(self.manifest, self.edited.tensors)}

    @cached_property
    def touched(self) -> dict[str, list[TensorEntry]]:
        """The edited tensors by their shards."""
        touched: dict[str, list[TensorEntry]] = {}
        for place in self.places.values():
            touched.setdefault(place.shard, []).append(place)
        return touched

    @cached_property
    def gone(self) -> set[str]:
        """The output's files that the base does not have under this name, or with this content."""
        kept = {ORIGINALS_FILE} & {*self.manifest.generated}
        return {MANIFEST_FILE, CARD_FILE, *kept, *([self.originals.card] if self.originals.card else [])}

    def refuse_changes(self, changed: Iterable[str]) -> None:
        """Refuse to lose later changes of the output's card or of an edited tensor."""
        own = [name for name in changed if name != ORIGINALS_FILE]
        card, files = self.originals.card, self.files
        base_card = files.read(card, 0, files.size(card)) if card is not None and card in files.sizes() else None
        if card is not None and base_card not in (None, self.originals.file(CARD_FILE)):
            own.append(card)
        after = {tensor.name: tensor.sha256_after for tensor in self.manifest.tensors}
        own += [f"tensor {name}" for name, place in self.places.items() if sha256_of(files, place) != after[name]]
        if own:
            raise UsageError(
                f"holds changes made since qkedit wrote it ({shown(own)})",
                where=str(files.directory),
                remedy="move them away first, or lose them with --force",
            )

    def write(self, staging: Path, progress: Progress) -> None:
        """Write the shards with their original tensors, and the base's card and manifest."""
        for shard, tensors in self.touched.items():
            source, destination, size = self.files.local_path(shard), staging / shard, self.edited.shards[shard].size
            with explained("create a directory", destination.parent):
                destination.parent.mkdir(parents=True, exist_ok=True)
            if not clone_or_reserve(source, destination, size, LinkMode.AUTO):
                gaps = complement([(place.start, place.end) for place in tensors], size)
                copy_ranges(source, destination, gaps, progress.bytes_done)
        originals = self.originals
        with opened_for_writing(staging, self.touched) as descriptors:
            for tensor in self.manifest.tensors:
                place = self.places[tensor.name]
                descriptor = descriptors[place.shard]
                before = copy_tensor(originals.files, originals.of(tensor), staging, place, descriptor, progress)
                if before != tensor.sha256_before:
                    raise originals.not_the_original(tensor)
                progress.layer_done()
        for name in (CARD_FILE, MANIFEST_FILE):
            content = originals.file(name)
            if content is not None:
                write_file(staging / name, content)


def _output(files: LocalFiles, out: Path | None, overwrite: bool, force: bool, fsync: bool) -> OutputOptions:
    if out is not None:
        return OutputOptions(out, link=_COPIED, overwrite=overwrite, force=force, fsync=fsync)
    if snapshot_of(files.directory.resolve()):
        raise UsageError(
            "is a snapshot in the hub's cache, which qkedit does not change",
            where=str(files.directory),
            remedy="write the restored model elsewhere with --out",
        )
    return OutputOptions(files.directory, link=_LINKED, fsync=fsync)


def _opened(files: LocalFiles) -> Checkpoint:
    if CONFIG_FILE not in files.sizes():
        raise CheckpointError(
            "is not a full checkpoint, so there is nothing to revert",
            where=str(files.directory),
            remedy="delete a delta or an adapter; to revert a checkpoint that was made with it, name that one",
        )
    return open_checkpoint(files)


def _compared(staging: Path, base: Checkpoint | None, on_bytes: Callable[[int], None]) -> tuple[int, tuple[str, ...]]:
    """Return the number of files compared with a base in a local directory, and the names of those that differ."""
    if base is None or not isinstance(base.files, LocalFiles):
        return 0, ()
    ours, theirs = LocalFiles(staging), base.files
    sizes, wanted = ours.sizes(), theirs.sizes()
    names = [file for file in base.kept_files if file != PLUGINS_FILE and not is_hidden_file(file)]
    piece = piece_size(ours, theirs)
    differing = [
        file
        for file in names
        if sizes.get(file) != wanted[file]
        or not same_bytes(
            pieces(ours, file, 0, wanted[file], piece), pieces(theirs, file, 0, wanted[file], piece), on_bytes
        )
    ]
    return len(names), tuple(differing)
