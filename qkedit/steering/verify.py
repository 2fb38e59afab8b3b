"""Check an output against its manifest and its base."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qkedit.checkpoint.architecture.heads import AttentionLayer
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE, ORIGINALS_FILE, PLUGINS_FILE, is_hidden_file
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.manifest_file import Manifest, TensorEdit
from qkedit.errors import CheckpointError, VerificationError, counted
from qkedit.steering.adapters.verification import adapter_mismatches, rows_beside_heads
from qkedit.steering.base import chosen_base
from qkedit.steering.diff import equal
from qkedit.steering.engine.reading import piece_size, pieces, same_bytes, sha256_of, tensors_of, whole_file
from qkedit.steering.manifest import DELTA_FILE, MANIFEST_FILE, is_adapter, read_manifest
from qkedit.steering.outputs.names import CARD_FILE, name_in_output
from qkedit.steering.sources.fitting import OTHER_CHANGES, known_query_layers, misfits, unlisted_rows

# The prefix of a mismatch of the base, as opposed to one of the output.
_OF_BASE = "base: "


@dataclass(frozen=True)
class Verification:
    """The result of a verification; `mismatches` is empty if everything matches.

    `compared_with_base` is None without a base: then only the planned tensors were compared.
    """

    directory: str
    layout: str
    tensors_checked: int
    compared_with_base: str | None
    tensors_compared: int
    files_compared: int
    mismatches: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as `--json` prints them."""
        return asdict(self)

    @property
    def remedy(self) -> str:
        """Return the remedy for the mismatches: another model than the edited base cannot verify an output."""
        if any(mismatch.startswith(_OF_BASE) for mismatch in self.mismatches):
            return "name the base that was edited (--base, and --revision on the hub) and verify again"
        return "write the output again and do not ship this one"

    def sentence(self) -> str:
        """Return a sentence for the command line about what was compared."""
        if self.compared_with_base is None:
            compared = "structure sound; the rest was not compared"
        elif self.layout != "full":
            compared = f"the base {self.compared_with_base} is the one that was edited"
        else:
            compared = (
                f"{counted(self.tensors_compared, 'other tensor')} and "
                f"{counted(self.files_compared, 'file')} equal to {self.compared_with_base}"
            )
        return f"{counted(self.tensors_checked, 'edited tensor')} as recorded; {compared}"


def mismatched(result: Verification, where: Path, remedy: str) -> VerificationError:
    """Return the error that names the mismatches."""
    names = ", ".join(result.mismatches[:3]) + (", …" if len(result.mismatches) > 3 else "")
    return VerificationError(
        f"{counted(len(result.mismatches), 'mismatch', 'mismatches')}: {names}",
        where=str(where),
        remedy=remedy,
        mismatches=result.mismatches,
    )


def verify(
    directory: str | Path,
    *,
    base: str | None = None,
    revision: str | None = None,
    on_bytes: Callable[[int], None] = lambda length: None,
) -> Verification:
    """Check a directory against its manifest and, except for the planned tensors, against its base.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        base: the model it was made from; by default the hub base that the manifest records.
        revision: the branch, tag or commit of a hub base given with `base`.
        on_bytes: called with the number of bytes read.

    Raises:
        CheckpointError: the directory has no manifest, or the base is not a sound checkpoint.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    found = chosen_base(manifest, base, revision)
    return compare_with_base(path, manifest, found.open() if found is not None else None, on_bytes)


def compare_with_base(
    directory: Path, manifest: Manifest, base: Checkpoint | None, on_bytes: Callable[[int], None]
) -> Verification:
    """Read a directory and its base, and compare both with the manifest and everything else with each other.

    Args:
        directory: an output in any layout.
        manifest: the edit's manifest.
        base: the model it was made from; without it, only the edited tensors are checked.
        on_bytes: called with the number of bytes read.
    """
    planned = {tensor.name: tensor for tensor in manifest.tensors}
    mismatches: list[str] = []
    layers: dict[str, AttentionLayer] | None = None
    if base is not None:
        mismatches += _wrong_hashes(base.files, base.tensors, planned, "sha256_before", on_bytes)
        if not mismatches:  # else it is another model, which proves nothing about the edit
            layers = known_query_layers(base)
            mismatches += misfits(manifest, layers) if layers is not None else ()
    files = LocalFiles(directory)
    result = partial(
        Verification,
        directory=str(directory),
        tensors_checked=len(planned),
        compared_with_base=base.files.name if base else None,
    )
    if is_adapter(files, manifest):
        mismatches += adapter_mismatches(files, manifest, on_bytes)
        if base is not None and layers is not None and not mismatches:
            mismatches += rows_beside_heads(files, manifest, base, layers)
        return result(layout="lora", tensors_compared=0, files_compared=0, mismatches=tuple(mismatches))
    sizes: dict[str, int] | None = None
    delta = False
    others: set[str] = set()
    names: dict[str, str] = {}
    try:
        sizes = files.sizes()
        weights = {name for name in sizes if name.endswith(".safetensors")}
        delta = CONFIG_FILE not in sizes and weights <= {DELTA_FILE}
        edited = None if delta else open_checkpoint(files)
        entries = tensors_of(files, DELTA_FILE) if edited is None else edited.tensors
    except CheckpointError as error:
        places = {name: DELTA_FILE if delta else tensor.shard for name, tensor in planned.items()}
        if base is not None and not delta:
            places = {name: entry.shard for name, entry in base.tensors.items()}
        mismatches.append(f"{error.where}: {error.what}")
        if sizes is not None:
            mismatches += [f"{name}: missing, as {shard} is" for name, shard in places.items() if shard not in sizes]
    else:
        mismatches += _wrong_hashes(files, entries, planned, "sha256_after", on_bytes)
        if base is not None and layers is not None and not mismatches:
            mismatches += _other_rows(files, entries, base, manifest, layers)
        mismatches += _wrong_originals(files, sizes, manifest, on_bytes)
        if edited is None:
            mismatches += [f"{name}: not in the manifest" for name in sorted(set(entries) - set(planned))]
        elif base is not None:
            others = (set(edited.tensors) | set(base.tensors)) - set(planned)
            mismatches += _different_tensors(edited, base, sorted(others), on_bytes)
            mismatches += _different_headers(edited, base)
            names = _names_in_output(base)
            mismatches += _different_files(edited, base, names, manifest.generated, on_bytes)
    return result(
        layout="delta" if delta else "full",
        tensors_compared=len(others),
        files_compared=len(names),
        mismatches=tuple(mismatches),
    )


def _other_rows(
    files: CheckpointFiles,
    entries: dict[str, TensorEntry],
    base: Checkpoint,
    manifest: Manifest,
    layers: dict[str, AttentionLayer],
) -> Iterable[str]:
    """Yield the differences from the base in edited tensors, outside the heads in the manifest."""
    piece = piece_size(files, base.files)
    for tensor in manifest.tensors:
        after, before = entries[tensor.name], base.tensors[tensor.name]
        width = before.nbytes // before.shape[0]
        for rows in unlisted_rows(tensor, layers[tensor.name].query):
            ours, theirs = (
                pieces(of, entry.shard, entry.start + rows.start * width, entry.start + rows.stop * width, piece)
                for of, entry in ((files, after), (base.files, before))
            )
            if not same_bytes(ours, theirs):
                yield f"{tensor.name}: {OTHER_CHANGES}"
                break


def _wrong_hashes(
    files: CheckpointFiles,
    entries: dict[str, TensorEntry],
    planned: dict[str, TensorEdit],
    which: Literal["sha256_before", "sha256_after"],
    on_bytes: Callable[[int], None],
) -> Iterable[str]:
    whose = _OF_BASE if which == "sha256_before" else ""
    for name, tensor in planned.items():
        entry = entries.get(name)
        if entry is None:
            yield f"{whose}{name}: missing"
        elif (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            yield f"{whose}{name}: dtype or shape differs from the manifest"
        elif sha256_of(files, entry, on_bytes) != getattr(tensor, which):
            yield f"{whose}{name}: SHA-256 differs from the manifest"


def _wrong_originals(
    files: CheckpointFiles, sizes: dict[str, int], manifest: Manifest, on_bytes: Callable[[int], None]
) -> Iterable[str]:
    """Yield the faults of the original bytes that an output keeps, if it keeps any."""
    if ORIGINALS_FILE not in manifest.generated:
        return
    if ORIGINALS_FILE not in sizes:
        yield f"{ORIGINALS_FILE}: missing"
    elif sha256_of(files, whole_file(ORIGINALS_FILE, sizes), on_bytes) != manifest.generated[ORIGINALS_FILE]:
        yield f"{ORIGINALS_FILE}: SHA-256 differs from the manifest"


def _different_tensors(
    edited: Checkpoint, base: Checkpoint, names: Iterable[str], on_bytes: Callable[[int], None]
) -> Iterable[str]:
    for name in names:
        ours, theirs = edited.tensors.get(name), base.tensors.get(name)
        if ours is None or theirs is None:
            yield f"{name}: {'missing' if ours is None else 'not in the base'}"
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            yield f"{name}: dtype or shape differs from the base"
        elif not equal(edited.files, ours, base.files, theirs, on_bytes):
            yield f"{name}: differs from the base"


def _different_headers(edited: Checkpoint, base: Checkpoint) -> Iterable[str]:
    """Yield differences of headers: a tensor may have its bytes at another place than in the base."""
    for file in sorted(set(edited.shards) | set(base.shards)):
        ours, theirs = edited.shards.get(file), base.shards.get(file)
        if ours is None or theirs is None:
            yield f"{file}: {'missing' if ours is None else 'not in the base'}"
        elif edited.files.read(file, 0, ours.data_start) != base.files.read(file, 0, theirs.data_start):
            yield f"{file}: header differs from the base"


def _names_in_output(base: Checkpoint) -> dict[str, str]:
    """Return every file except shards that an output takes over unchanged, with its name there."""
    # The plug-ins of a model may change at any time, and change no weights.
    # Hidden files (`.gitattributes`) belong to tools, and differ after an upload.
    compared = [file for file in base.side_files if file != PLUGINS_FILE and not is_hidden_file(file)]
    names = {file: name_in_output(base, file) for file in compared}
    if base.index:
        names[base.index] = base.index
    return {file: name for file, name in names.items() if name is not None}


def _different_files(
    edited: Checkpoint,
    base: Checkpoint,
    names: dict[str, str],
    generated: Iterable[str],
    on_bytes: Callable[[int], None],
) -> Iterable[str]:
    sizes, base_sizes = edited.files.sizes(), base.files.sizes()
    piece = piece_size(edited.files, base.files)
    for file, name in names.items():
        size = base_sizes[file]
        if name not in sizes:
            yield f"{name}: missing"
        elif sizes[name] != size or not same_bytes(
            pieces(edited.files, name, 0, size, piece), pieces(base.files, file, 0, size, piece), on_bytes
        ):
            yield f"{name}: differs from the base"
    # A Python module that the config names, or weights in a format that an engine prefers, would be loaded from here.
    unknown = {*edited.side_files, *edited.left_out} - {
        *names.values(),
        *generated,
        MANIFEST_FILE,
        CARD_FILE,
        PLUGINS_FILE,
    }
    yield from (f"{name}: not in the base" for name in sorted(unknown) if not is_hidden_file(name))
