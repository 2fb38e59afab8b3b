"""Compute the disk space that an output needs, and check that it is available."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.contents import CONFIG_FILE
from qkedit.checkpoint.io.copying import LinkMode, can_share_blocks
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.source import LocalFiles
from qkedit.errors import QkeditError
from qkedit.steering.steer_options import OutputOptions


def disk_needed(
    checkpoint: Checkpoint, planned: Mapping[str, TensorEntry], output: OutputOptions, *, shared: bool = False
) -> int:
    """Return the bytes that an output takes on the disk, without its manifest and card.

    Args:
        checkpoint: the base.
        planned: the tensors that are edited.
        output: the options of the output.
        shared: whether unchanged files share their blocks with the base. Without a trial this is not known, and only
            requested links count as free.
    """
    changed = sum(entry.nbytes for entry in planned.values())
    if output.layout != "full":  # the factors of an adapter take less, unless nearly all modes are suppressed
        return changed
    kept = changed if output.keep_original else 0
    sizes = {name: shard.size for name, shard in checkpoint.shards.items()}
    other_files = checkpoint.kept_bytes - sum(sizes.values()) + kept
    link = LinkMode(output.link)
    if link in (LinkMode.HARD, LinkMode.SYMLINK):
        touched = {entry.shard for entry in planned.values()}
        return other_files + (changed if shared else sum(sizes[name] for name in touched))
    return other_files + (changed if shared or link is LinkMode.REFLINK else sum(sizes.values()))


def refuse_without_room(
    staging: Path, checkpoint: Checkpoint, planned: Mapping[str, TensorEntry], output: OutputOptions
) -> None:
    """Refuse to begin an output that does not fit on the file system of `staging`.

    Raises:
        QkeditError: the output takes more bytes than are free.
    """
    with explained("ask for the free space", staging):
        disk = shutil.disk_usage(staging)
    if not disk.total:  # some network file systems do not report it
        return
    needed = disk_needed(checkpoint, planned, output)
    if needed > disk.free and output.layout == "full" and _shares_blocks(staging, checkpoint):
        needed = disk_needed(checkpoint, planned, output, shared=True)
    if needed > disk.free:
        raise QkeditError(
            f"the output takes {needed / 1e9:.2f} GB and {disk.free / 1e9:.2f} GB are free",
            where=str(output.out),
            remedy="free some space or choose a place on another file system",
        )


def _shares_blocks(staging: Path, checkpoint: Checkpoint) -> bool:
    """Return whether `staging` can share blocks with files of the base; tried with one file."""
    # The shards of a model on the hub may not be downloaded yet; the cache holds the config next to them.
    file = next(iter(checkpoint.shards)) if isinstance(checkpoint.files, LocalFiles) else CONFIG_FILE
    return can_share_blocks(checkpoint.files.local_path(file), staging)
