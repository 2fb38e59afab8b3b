"""Find files of a base that prevent an output: links to private files, and names that the output needs for itself."""

from __future__ import annotations

from collections.abc import Iterable, Set
from pathlib import PurePosixPath

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import ADAPTER, ORIGINALS_FILE
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import CheckpointError
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.steer_options import OutputOptions

_LINKS_SHOWN = 3


def refuse_base_files(checkpoint: Checkpoint, shards: Iterable[str], output: OutputOptions) -> None:
    """Refuse a base with files that an output cannot or must not contain.

    Args:
        checkpoint: the base.
        shards: the edited shards; a delta reads no others.
        output: the options of the output.

    Raises:
        CheckpointError: links lead out of the checkpoint, or a directory has the name of a file of the output.
    """
    taken = checkpoint.kept_files if output.layout == "full" else tuple(shards)
    if not output.follow_links:
        _refuse_links(checkpoint, taken)
    if output.layout == "full":
        _refuse_clashes(
            checkpoint, {*files_of_output(checkpoint), *([ORIGINALS_FILE] if output.keep_original else [])}
        )


def adapter_warning(left_out: Iterable[tuple[str, str]]) -> str | None:
    """Return the warning about an adapter next to the weights, or None."""
    names = sorted(name for name, reason in left_out if reason == ADAPTER)
    if not names:
        return None
    return (
        f"there is an adapter next to the weights ({', '.join(names)}): it is not part of the edit and was "
        "left out; if it belongs to the model, merge it first (merge_and_unload of peft)"
    )


def _refuse_links(checkpoint: Checkpoint, files: Iterable[str]) -> None:
    source = checkpoint.files
    if not isinstance(source, LocalFiles):
        return
    found = [(file, real) for file in files if (real := source.leads_out(file)) is not None]
    if found:
        named = [f"{file} leads to {real}" for file, real in found[:_LINKS_SHOWN]]
        more = [f"{len(found) - _LINKS_SHOWN} more"] if len(found) > _LINKS_SHOWN else []
        raise CheckpointError(
            f"holds links to files outside of it ({', '.join(named + more)})",
            where=source.name,
            remedy="remove the links, or pass --follow-links if these files may come into the output",
        )


def _refuse_clashes(checkpoint: Checkpoint, names: Set[str]) -> None:
    for name in sorted(names):
        for parent in PurePosixPath(name).parents:
            if str(parent) in names:
                raise CheckpointError(
                    f"has a directory {parent}, and the output needs a file of this name",
                    where=checkpoint.files.name,
                    remedy="rename the directory, or take it out of the model's",
                )
