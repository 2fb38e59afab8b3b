"""Edit, look at and check checkpoints from Python: what `inspect`, `apply`, `export` and `verify` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.selection import Selection, selection_text
from qkedit.spectral.suppression import Suppression
from qkedit.steering.steer_options import ComputeDtype, Layout, OutputOptions, SteerOptions

if TYPE_CHECKING:
    from qkedit.inspection.spectra import Inspection
    from qkedit.steering.plan import SteerPlan
    from qkedit.steering.run import SteerReport
    from qkedit.steering.verify import Verification


def plan(
    model: str | Path,
    *,
    layers: Selection = "mid",
    heads: Selection = "all",
    suppression: Suppression | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    revision: str | None = None,
    allow_text_only: bool = False,
    architectures: Directories | None = None,
) -> SteerPlan:
    """Return what an edit would read, change and write, from headers and config alone.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        layers: `"10-20"`, a number, a range or numbers; both ends of a text's range are included.
        heads: query heads, likewise.
        suppression: what to suppress; by default the four dominant modes.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        compute_dtype: `float32` or `float64` arithmetic of the write-back.
        revision: branch, tag or commit of a model on the hub.
        allow_text_only: take a checkpoint without vision too.
        architectures: directories of records that are known in addition to qkedit's own (docs/adding-a-model.md).

    Raises:
        QkeditError: there is no such model, layer or head, or its projections cannot be edited.

    Example:
        >>> qkedit.plan("demo", layers=range(2, 6)).bytes_to_write
        262144
    """
    from qkedit.steering.plan import plan_for

    options = SteerOptions(
        selection_text(layers),
        selection_text(heads, "heads"),
        suppression or Suppression(),
        compute_dtype,
        device,
        allow_text_only,
    )
    with using_architectures(architectures):
        return plan_for(str(model), options, revision)


def inspect(
    model: str | Path,
    *,
    layers: Selection = "all",
    heads: Selection = "all",
    suppression: Suppression | None = None,
    offset: int | tuple[int, int, int] = 0,
    device: str = "auto",
    revision: str | None = None,
    architectures: Directories | None = None,
) -> Inspection:
    """Return the spectra of a checkpoint's query-key products; nothing is written.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        layers: as for `plan`.
        heads: as for `plan`.
        suppression: its channel, and its `k` or `energy` for what counts as dominant.
        offset: query − key position that the rotation in between stands for; three numbers for time, height and width.
        device: as for `plan`.
        revision: of a model on the hub.
        architectures: as for `plan`.

    Raises:
        QkeditError: as for `plan`; or a weight holds NaN or infinity, or positions are not understood.

    Example:
        >>> qkedit.inspect("demo", layers=3).layers[0].heads[0].head
        0
    """
    from qkedit.inspection.spectra import inspect as inspect_plan

    with using_architectures(architectures):
        planned = plan(
            model,
            layers=layers,
            heads=heads,
            suppression=suppression,
            device=device,
            revision=revision,
            allow_text_only=True,
        )
        return inspect_plan(planned, (offset, offset, offset) if isinstance(offset, int) else offset)


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
) -> SteerReport:
    """Make the full checkpoint from a delta or an adapter and its base; or from several edits of one base.

    From a delta it is byte-equal to steering directly. An adapter is added to the base in float64 and rounded once.

    Args:
        delta: a directory written with `layout="delta"` or `layout="lora"`, or a full output; or several of the same
            base, whose changes are added up where they meet.
        base: the model that was steered: a directory, a hub id, an alias or `demo`.
        out: the directory to write; it appears finished or not at all.
        revision: of a base on the hub; the one in its manifest by default.
        link: how unchanged shards come into the output: `auto`, `copy`, `reflink`, `hard` or `symlink`.
        overwrite: replace an earlier output.
        fsync: wait until the disk holds the output.
        verify: read everything back and compare it before the output is put in place.
        keep_original: keep the original bytes of the edited tensors beside the model, for `revert`.

    Raises:
        QkeditError: the base is not the model that it was made from, it is damaged, or nothing may be
            written there; nothing was written then.
    """
    from qkedit.steering.apply import apply_edits

    edits = [delta] if isinstance(delta, str | Path) else list(delta)
    output = OutputOptions(Path(out), "full", link, overwrite, fsync=fsync, verify=verify, keep_original=keep_original)
    return apply_edits(edits, base=str(base), output=output, revision=revision)


def merge(
    edits: Sequence[str | Path],
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    fsync: bool = True,
) -> SteerReport:
    """Make one delta of several edits of one base; where they meet, their changes are added up.

    Args:
        edits: outputs of qkedit, in either layout.
        out: the directory to write; it appears finished or not at all.
        base: the model they were made from; the one in the first manifest by default, if it is on the hub or the demo.
        revision: of a base on the hub.
        overwrite: replace an earlier output.
        fsync: wait until the disk holds the output.

    Raises:
        QkeditError: as for `apply`.
    """
    from qkedit.steering.apply import merge_edits

    output = OutputOptions(Path(out), "delta", overwrite=overwrite, fsync=fsync)
    return merge_edits(edits, output=output, base=None if base is None else str(base), revision=revision)


def interpolate(
    edit: str | Path,
    strength: float,
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    layout: Layout = "full",
    overwrite: bool = False,
    fsync: bool = True,
) -> SteerReport:
    """Write an edit in another strength, `W + strength (W' − W)`, rounded once.

    Args:
        edit: an output of qkedit, in either layout.
        strength: above 0, at most 2; 1 gives what `apply` gives, to the byte.
        out: the directory to write; it appears finished or not at all.
        base: as for `merge`.
        revision: of a base on the hub.
        layout: `full`, or `delta` for the edited tensors alone.
        overwrite: replace an earlier output.
        fsync: wait until the disk holds the output.

    Raises:
        QkeditError: as for `apply`; or the storage dtype cannot hold so small a change.
    """
    from qkedit.steering.apply import interpolate_edit

    output = OutputOptions(Path(out), layout, overwrite=overwrite, fsync=fsync)
    base = None if base is None else str(base)
    return interpolate_edit(edit, strength, output=output, base=base, revision=revision)


def export(
    edit: str | Path,
    *,
    out: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    rank: int | None = None,
    overwrite: bool = False,
    fsync: bool = True,
    verify: bool = False,
) -> SteerReport:
    """Write an edit as an adapter for PEFT and vLLM.

    The factors are found in the difference between the edited tensors and the base, which were rounded to the storage
    dtype. `report.manifest.adapter` has the rank and the error of each layer. `steer(…, layout="lora")` writes the
    edit before any rounding.

    Args:
        edit: a full directory or a delta that `steer` wrote.
        out: the directory to write; it appears finished or not at all.
        base: the model that was edited; one on the hub is found by the manifest's id and revision.
        revision: of a base on the hub that is given with `base`.
        rank: the largest rank per layer; that of the edit by default.
        overwrite: replace an earlier output.
        fsync: wait until the disk holds the output.
        verify: read everything back and compare it before the output is put in place.

    Raises:
        QkeditError: the base is not the model that was edited, the edit is damaged, no adapter can hold it, or nothing
            may be written there; nothing was written then.
    """
    from qkedit.steering.export import export as export_edit

    output = OutputOptions(Path(out), "lora", overwrite=overwrite, fsync=fsync, verify=verify, rank=rank)
    return export_edit(edit, output=output, base=None if base is None else str(base), revision=revision)


def verify(directory: str | Path, *, base: str | Path | None = None, revision: str | None = None) -> Verification:
    """Check that a directory is what its manifest says and, but for the planned tensors, what its base is.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        base: the model it was made from; a base on the hub is found by the manifest's id and revision.
        revision: of a base on the hub that is given with `base`.

    Returns:
        What was compared, and the mismatches: a wrong output is an answer here, not an error.

    Raises:
        CheckpointError: the directory carries no manifest, or the base is not a sound checkpoint.
    """
    from qkedit.steering.verify import verify as verify_output

    return verify_output(directory, base=None if base is None else str(base), revision=revision)
