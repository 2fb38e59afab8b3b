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
        output: how the output is written.
        shared: whether blocks of unchanged files are shared with the base; without a trial this is not known, so only
            links that were asked for take nothing.
    """
    changed = sum(entry.nbytes for entry in planned.values())
    if output.layout != "full":  # the factors of an adapter take less, unless nearly all modes are suppressed
        return changed
    kept = changed if output.keep_original else 0
    sizes = {name: shard.size for name, shard in checkpoint.shards.items()}
    beside = checkpoint.kept_bytes - sum(sizes.values()) + kept
    link = LinkMode(output.link)
    if link in (LinkMode.HARD, LinkMode.SYMLINK):
        touched = {entry.shard for entry in planned.values()}
        return beside + (changed if shared else sum(sizes[name] for name in touched))
    return beside + (changed if shared or link is LinkMode.REFLINK else sum(sizes.values()))


def refuse_without_room(
    staging: Path, checkpoint: Checkpoint, planned: Mapping[str, TensorEntry], output: OutputOptions
) -> None:
    """Refuse to begin an output that the file system of `staging` has no room for.

    Raises:
        QkeditError: it takes more bytes than are free.
    """
    with explained("ask for the free space", staging):
        disk = shutil.disk_usage(staging)
    if not disk.total:  # some network file systems do not say
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
    """Whether files of the base can come into `staging` without taking room; tried with one of them."""
    # The shards of a model on the hub may not be downloaded yet; its config lies beside them in the cache.
    file = next(iter(checkpoint.shards)) if isinstance(checkpoint.files, LocalFiles) else CONFIG_FILE
    return can_share_blocks(checkpoint.files.local_path(file), staging)
