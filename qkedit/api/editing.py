"""Plan and make edits of checkpoints from Python: the command `steer`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.renamed import renamed_argument
from qkedit.selection import Selection
from qkedit.spectral.sink import NONE, Sink
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.run import SteerReport, run_plan
from qkedit.steering.steer_options import (
    ComputeDtype,
    Layout,
    OutputOptions,
    Product,
    Spared,
    SteerOptions,
    edit_options,
)

if TYPE_CHECKING:
    from qkedit.steering.engine.progress import Progress


def plan(
    model: str | Path,
    *,
    layers: Selection = "mid",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    retain: float = 0.0,
    channel: Channel = "full",
    control: Control = "none",
    seed: int = 0,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    revision: str | None = None,
    keep_plugins: bool = False,
    allow_text_only: bool = False,
    protect: str = NONE,
    spare: Spared = "none",
    product: Product = "raw",
    architectures: Directories | None = None,
) -> SteerPlan:
    """Return the plan of an edit, with what it would read, change and write, from headers and config alone.

    Args:
        model: as for `steer`, and so are the other arguments. The model is not run, so the plan does not say which
            heads or directions `spare` and `protect` leave alone.

    Raises:
        QkeditError: the model, a layer or a head does not exist, or its projections cannot be edited.

    Example:
        >>> qkedit.plan("demo", layers=range(2, 6), k=4).bytes_to_write
        262144
    """
    suppression = Suppression(k, energy, retain, channel, control, seed)
    options = edit_options(layers, heads, suppression, device, compute_dtype, allow_text_only, protect, spare, product)
    with using_architectures(architectures):
        return planned_edit(model, options, spare, revision, keep_plugins)


@renamed_argument("residual", "retain")
def steer(
    model: str | Path,
    *,
    out: str | Path,
    layers: Selection = "mid",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    retain: float = 0.0,
    channel: Channel = "full",
    control: Control = "none",
    seed: int = 0,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    revision: str | None = None,
    layout: Layout = "full",
    rank: int | None = None,
    keep_original: bool = False,
    link: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    follow_links: bool = False,
    keep_plugins: bool = False,
    fsync: bool = True,
    verify: bool = False,
    allow_text_only: bool = False,
    protect: str = NONE,
    sink: Sink | None = None,
    spare: Spared = "none",
    product: Product = "raw",
    architectures: Directories | None = None,
    progress: Progress | None = None,
) -> SteerReport:
    """Suppress the dominant query-key modes of a checkpoint and write the result to a directory.

    Args:
        model: a directory, a hub id (`org/name`), an alias (`qwen2-vl`) or `demo`.
        out: the directory to write; it appears complete or not at all.
        layers: `10-20`, `3,5,8-12`, `all`, `mid` or `0.35-0.7`; or a number, a range or numbers.
        heads: query heads, `all` or `0,3,8-12`; or numbers.
        k: dominant modes to suppress in each head.
        energy: instead of k, as many modes as carry this share of the energy, in (0, 1].
        retain: share of each suppressed mode that stays, in [0, 1).
        channel: `full`, `symmetric` or `antisymmetric`.
        control: `none`, `index` or `norm`: a matched random control instead of the edit.
        seed: the seed of the control's random draws.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `cuda` means every visible GPU.
        compute_dtype: the arithmetic of the write-back, `float32` or `float64`.
        revision: the branch, tag or commit of a hub model.
        layout: `full`, `delta` for the edited tensors alone, or `lora` for their change as an adapter of PEFT.
        rank: the largest rank of an adapter per layer; by default that of the edit.
        keep_original: keep the original bytes of the edited tensors next to the model, for `revert`.
        link: `auto`, `copy`, `reflink`, `hard` or `symlink`: the way to take over unchanged shards.
        overwrite: replace an earlier output, if nothing else lies in it.
        force: replace the directory at `out`, whatever it holds.
        follow_links: copy the targets of the base's links, wherever they are.
        keep_plugins: copy the base's `qkedit-plugins.json` to the output.
        fsync: wait until the disk holds the output.
        verify: read the finished output back and compare all of it with the base before it appears.
        allow_text_only: also accept a checkpoint without vision.
        protect: `sink` or `sink:4` leaves alone as many query directions that find the attention sink. The model is
            loaded on the CPU and run on one token to find them.
        sink: the sink of a model that is loaded already, `qkedit.sink_of(model)`.
        spare: `induction` leaves alone the heads that copy, for which the model is run on random tokens; or query
            heads by layer, such as `qkedit.copying_heads(model)` of a model that is loaded already.
        product: `raw`: the modes are those of `W_qᵀ W_k`; or `folded`: those of the product with the gain of the norm
            before the projections.
        architectures: directories of records in addition to qkedit's own (docs/adding-a-model.md).
        progress: called as the work advances.

    Returns:
        The report of the edit, with the manifest of the output.

    Raises:
        QkeditError: one sentence that says what failed, where, and what to do; nothing was written.

    Example:
        >>> import qkedit
        >>> report = qkedit.steer("demo", out="./edited", layers="2-5", k=4)
        >>> len(report.manifest.tensors)
        4
    """
    suppression = Suppression(k, energy, retain, channel, control, seed)
    options = edit_options(layers, heads, suppression, device, compute_dtype, allow_text_only, protect, spare, product)
    output = OutputOptions(Path(out), layout, link, overwrite, fsync, verify, force, follow_links, rank, keep_original)
    with using_architectures(architectures):
        planned = planned_edit(model, options, spare, revision, keep_plugins)
        return run_plan(after_a_run(replace(planned, sink=sink), model, revision), output, progress)


def planned_edit(
    model: str | Path, options: SteerOptions, spare: Spared, revision: str | None, keep_plugins: bool = False
) -> SteerPlan:
    """Return the plan of an edit of a model by its name, without the heads that `spare` lists."""
    planned = plan_for(str(model), options, revision, keep_plugins=keep_plugins)
    return planned if isinstance(spare, str) else planned.sparing(spare)


def after_a_run(planned: SteerPlan, model: str | Path, revision: str | None) -> SteerPlan:
    """Return the plan with what a run of the model shows, if its options ask for it."""
    if not planned.needs_run:
        return planned
    from qkedit.runtime.editing import with_run_of  # imports torch

    return with_run_of(planned, str(model), revision)
