"""Work with existing edits from Python: the commands `apply`, `merge`, `interpolate`, `export` and `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.steering.steer_options import Layout, OutputOptions

if TYPE_CHECKING:
    from qkedit.steering.run import SteerReport
    from qkedit.steering.verify import Verification


def apply(
    delta: str | Path | Sequence[str | Path],
    *,
    base: str | Path,
    out: str | Path,
    revision: str | None = None,
    link: str = "auto",
    overwrite: bool = False,
    fsync: bool = True,
    verify: bool = False,
    keep_original: bool = False,
    keep_plugins: bool = False,
    force: bool = False,
    follow_links: bool = False,
    architectures: Directories | None = None,
) -> SteerReport:
    """Make the full checkpoint from a delta or an adapter and its base, or from several edits of one base.

    From a delta it is byte-equal to steering directly. An adapter is added to the base in float64 and rounded once.

    Args:
        delta: a directory written with `layout="delta"` or `layout="lora"`, or a full output; or several edits of the
            same base, whose overlapping changes are added.
        base: the model that was steered: a directory, a hub id, an alias or `demo`.
        out: the directory to write; it appears finished or not at all.
        revision: the revision of a base on the hub; by default the one in its manifest.
        link: the way unchanged shards are put into the output: `auto`, `copy`, `reflink`, `hard` or `symlink`.
        overwrite: whether to replace an earlier output.
        fsync: whether to wait until the output is on the disk.
        verify: whether to read everything back and compare it before the output is put in place.
        keep_original: whether to keep the original bytes of the edited tensors next to the model, for `revert`.
        keep_plugins, force, follow_links, architectures: as for `steer`.

    Raises:
        QkeditError: the base is not the model that the edit was made from, the edit is damaged, or the output may not
            be written; then nothing is written.
    """
    from qkedit.steering.apply import apply_edits

    edits = [delta] if isinstance(delta, str | Path) else list(delta)
    output = OutputOptions(
        Path(out), "full", link, overwrite, fsync, verify, force, follow_links, keep_original=keep_original
    )
    with using_architectures(architectures):
        return apply_edits(edits, base=str(base), output=output, revision=revision, keep_plugins=keep_plugins)


def merge(
    edits: Sequence[str | Path],
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    fsync: bool = True,
    verify: bool = False,
    architectures: Directories | None = None,
) -> SteerReport:
    """Merge several edits of one base into one delta; overlapping changes are added.

    Args:
        edits: outputs of qkedit, in any layout.
        out: the directory to write; it appears finished or not at all.
        base: the model they were made from; by default the one in the first manifest, if it is on the hub or the demo.
        revision: the revision of a base on the hub.
        overwrite, force, fsync, verify, architectures: as for `apply`.

    Raises:
        QkeditError: as for `apply`.
    """
    from qkedit.steering.apply import merge_edits

    output = OutputOptions(Path(out), "delta", overwrite=overwrite, fsync=fsync, verify=verify, force=force)
    with using_architectures(architectures):
        return merge_edits(edits, output=output, base=None if base is None else str(base), revision=revision)


def interpolate(
    edit: str | Path,
    strength: float,
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    layout: Layout = "full",
    link: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    follow_links: bool = False,
    fsync: bool = True,
    verify: bool = False,
    architectures: Directories | None = None,
) -> SteerReport:
    """Write an edit with another strength, `W + strength (W' − W)`, rounded once.

    Args:
        edit: an output of qkedit, in any layout.
        strength: above 0, at most 2; 1 gives the same bytes as `apply`.
        out: the directory to write; it appears finished or not at all.
        base: as for `merge`.
        revision: the revision of a base on the hub.
        layout: `full`, or `delta` for only the edited tensors.
        link, overwrite, force, follow_links, fsync, verify, architectures: as for `apply`.

    Raises:
        QkeditError: as for `apply`; or the storage dtype cannot represent such a small change.
    """
    from qkedit.steering.apply import interpolate_edit

    output = OutputOptions(Path(out), layout, link, overwrite, fsync, verify, force, follow_links)
    base = None if base is None else str(base)
    with using_architectures(architectures):
        return interpolate_edit(edit, strength, output=output, base=base, revision=revision)


def export(
    edit: str | Path,
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    force: bool = False,
    fsync: bool = True,
    verify: bool = False,
    architectures: Directories | None = None,
) -> SteerReport:
    """Write an edit as an adapter for PEFT and vLLM.

    The factors are computed from the difference of the edited tensors and the base, both rounded to the storage dtype.
    `report.manifest.adapter` has the rank and the error of each layer. `steer(…, layout="lora")` writes the edit
    before any rounding.

    Args:
        edit: a full directory or a delta that `steer` wrote.
        out: the directory to write; it appears finished or not at all.
        base: the model that was edited; a base on the hub is found by the manifest's id and revision.
        revision: the revision of a base on the hub that is given with `base`.
        rank: the maximum rank per layer; by default that of the edit.
        overwrite, force, fsync, verify, architectures: as for `apply`.

    Raises:
        QkeditError: the base is not the model that was edited, the edit is damaged, no adapter can represent it, or
            the output may not be written; then nothing is written.
    """
    from qkedit.steering.export import export as export_edit

    output = OutputOptions(Path(out), "lora", "auto", overwrite, fsync, verify, force, rank=rank)
    with using_architectures(architectures):
        return export_edit(edit, output=output, base=None if base is None else str(base), revision=revision)


def verify(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    architectures: Directories | None = None,
) -> Verification:
    """Check a directory against its manifest and, except for the edited tensors, against its base.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        base: the model it was made from; a base on the hub is found by the manifest's id and revision.
        revision: of a base on the hub that is given with `base`.
        architectures: as for `steer`.

    Returns:
        What was compared, and the mismatches: an invalid output is a result here, not an error.

    Raises:
        CheckpointError: the directory has no manifest, or the base is not a valid checkpoint.
    """
    from qkedit.steering.verify import verify as verify_output

    with using_architectures(architectures):
        return verify_output(directory, base=None if base is None else str(base), revision=revision)
