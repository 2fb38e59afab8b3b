"""The main job: plan → read → edit → write → check → one rename."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.architecture.library import Directories, using_architectures
from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.ownership import Replaced
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.checkpoint.io.target import locate, refuse_existing, refuse_misplaced
from qkedit.checkpoint.manifest_file import HeadEdit, Manifest
from qkedit.renamed import renamed_argument
from qkedit.selection import Selection, selection_text
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.base_files import refuse_base_files
from qkedit.steering.edit_warnings import warnings_of
from qkedit.steering.engine.device import choose_device, choose_devices, recorded_device
from qkedit.steering.engine.edited_tensor import EditedTensor, EditedTensors
from qkedit.steering.engine.pace import pace_of
from qkedit.steering.engine.prefetch import prefetch
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.reading import stored_layers
from qkedit.steering.manifest import MANIFEST_FILE, earlier_manifests, make_manifest
from qkedit.steering.outputs.chosen import writer_for
from qkedit.steering.outputs.disk_space import refuse_without_room
from qkedit.steering.outputs.tensors import write_file
from qkedit.steering.outputs.writer import Writer, Written
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.processes.launch import Launch
from qkedit.steering.steer_options import ComputeDtype, Layout, OutputOptions, SteerOptions
from qkedit.stopwatch import Stopwatch

if TYPE_CHECKING:
    from qkedit.steering.verify import Verification


@dataclass(frozen=True)
class SteerReport:
    """The report of a finished run.

    `left_out` holds the base's files that are not in the output, with the reasons. `seconds` are per stage; stages
    overlap, so they add up to more than `total`. `warnings` are what a reader should know before trusting the edit.
    `verification` is None where none was asked for.
    """

    out: Path
    layout: Layout
    manifest: Manifest
    left_out: dict[str, str]
    bytes_changed: int
    bytes_in_output: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    verification: Verification | None = None

    @property
    def heads(self) -> tuple[HeadEdit, ...]:
        """Every edited head's entry of the manifest."""
        return self.manifest.heads

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it, the manifest included."""
        return asdict(self) | {"out": str(self.out), "manifest": self.manifest.as_dict()}


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
    architectures: Directories | None = None,
    progress: Progress | None = None,
) -> SteerReport:
    """Suppress the dominant query-key modes of a checkpoint and write the result to a directory.

    Args:
        model: a directory, a hub id (`org/name`), an alias (`qwen2-vl`) or `demo`.
        out: the directory to write; it appears finished or not at all.
        layers: `10-20`, `3,5,8-12`, `all`, `mid` or `0.35-0.7`; or a number, a range or numbers.
        heads: query heads, `all` or `0,3,8-12`; or numbers.
        k: dominant modes to suppress in each head.
        energy: instead of k, as many modes as carry this share of the energy, in (0, 1].
        retain: share of each suppressed mode that stays, in [0, 1).
        channel: `full`, `symmetric` or `antisymmetric`.
        control: `none`, `index` or `norm`: a matched random control instead of the edit.
        seed: of the control's draws.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `cuda` is every GPU that is seen.
        compute_dtype: `float32` or `float64` arithmetic of the write-back.
        revision: branch, tag or commit of a hub model.
        layout: `full`, `delta` for the edited tensors alone, or `lora` for their change as an adapter of PEFT.
        rank: of an adapter at most, in each layer; that of the edit by default.
        keep_original: keep the original bytes of the edited tensors beside the model, for `revert`.
        link: `auto`, `copy`, `reflink`, `hard` or `symlink`, for shards that stay as they are.
        overwrite: replace an earlier output, if nothing else lies in it.
        force: replace the directory that stands there, whatever it holds.
        follow_links: take in files that links of the base lead to, wherever they are.
        keep_plugins: take along the plug-ins that are attached to the base.
        fsync: wait until the disk holds the output.
        verify: read the finished output back and compare all of it with the base before it appears.
        allow_text_only: take a checkpoint without vision too.
        architectures: directories of records that are known besides qkedit's own (docs/adding-a-model.md).
        progress: told how far the run is.

    Returns:
        What was done, with the manifest that stands in the output.

    Raises:
        QkeditError: one sentence of what, where and what to do; nothing was written then.

    Example:
        >>> import qkedit
        >>> report = qkedit.steer("demo", out="./edited", layers="2-5", k=4)
        >>> len(report.manifest.tensors)
        4
    """
    suppression = Suppression(k, energy, retain, channel, control, seed)
    options = SteerOptions(
        selection_text(layers), selection_text(heads, "heads"), suppression, compute_dtype, device, allow_text_only
    )
    output = OutputOptions(Path(out), layout, link, overwrite, fsync, verify, force, follow_links, rank, keep_original)
    with using_architectures(architectures):
        plan = plan_for(str(model), options, revision, keep_plugins=keep_plugins)
    return run_plan(plan, output, progress)


def check_plan(plan: SteerPlan, output: OutputOptions | None) -> Replaced:
    """Raise what can be known to stop a run before it begins, and return the files that it would replace.

    Args:
        plan: what would be carried out.
        output: where and how; None where that is not said yet.

    Raises:
        UsageError: there is no such device, or nothing may be written there.
        UnsupportedForm: an adapter is asked for, and none can hold the edit.
        CheckpointError: the base carries a manifest that cannot be continued.
    """
    earlier_manifests(plan.checkpoint)
    if output is not None:
        refuse_base_files(plan.checkpoint, plan.touched_shards, output)
        writer_for(plan.checkpoint, plan.edited_layers, output, Stopwatch(), Silent())
    if plan.options.device not in ("auto", "cpu"):  # to look for others takes torch, and a second
        choose_device(plan.options.device)
    if output is None:
        return Replaced()
    target = locate(output.out)
    refuse_misplaced(target, _directories(plan.checkpoint.files))
    return refuse_existing(target, overwrite=output.overwrite, force=output.force)


def run_plan(
    plan: SteerPlan, output: OutputOptions, progress: Progress | None = None, launch: Launch | None = None
) -> SteerReport:
    """Carry out a plan; see `steer`.

    Args:
        plan: what to do.
        output: where and how to write it.
        progress: told how far the run is.
        launch: of the first of several processes, which share the layers: the others call `assist`.
    """
    earlier_manifests(plan.checkpoint)  # what cannot be continued should not be found out at the end
    stopwatch, progress = Stopwatch(), progress or Silent()
    edits_of = partial(_edited_weights, stopwatch=stopwatch, factored=output.layout == "lora")
    if launch:
        from qkedit.steering.processes.sharing import shared_edits

        edits, ahead = shared_edits(plan, launch, edits_of), 0  # the others work ahead
    else:
        edits, ahead = edits_of(plan), pace_of(plan).edited
    return write_output(
        plan.checkpoint,
        writer_for(plan.checkpoint, plan.edited_layers, output, stopwatch, progress),
        edits,
        ahead,
        lambda written: make_manifest(plan, recorded_device(plan.options.device), written),
        output,
        (plan.checkpoint.files,),
        stopwatch,
        progress,
    )


def assist(launch: Launch, plan_of: Callable[[], SteerPlan], output: OutputOptions) -> None:
    """Do the share of one process that is not the first: edit its layers, and hand them over.

    Args:
        launch: of this process.
        plan_of: makes the plan that the first process runs.
        output: that of the first process.

    Raises:
        QkeditError: what the first process says as well; or that one has ended.
    """
    from qkedit.steering.processes.sharing import hand_over_edits

    edits_of = partial(_edited_weights, stopwatch=Stopwatch(), factored=output.layout == "lora")
    hand_over_edits(launch, plan_of, edits_of)


def _edited_weights(plan: SteerPlan, stopwatch: Stopwatch, *, factored: bool) -> Iterator[EditedTensor]:
    """The stream of edits; torch is imported when it is first asked for, beside the copying and the first reading."""
    with prefetch(stored_layers(plan, stopwatch), pace_of(plan).read) as layers:
        with stopwatch("start-up"):
            from qkedit.steering.engine.edited_weights import edited_weights

            devices = choose_devices(plan.options.device)
        yield from edited_weights(layers, plan, devices, stopwatch, factored=factored)


def write_output(
    checkpoint: Checkpoint,
    writer: Writer,
    edits: EditedTensors,
    ahead: int,
    manifest_of: Callable[[Written], Manifest],
    output: OutputOptions,
    sources: Sequence[CheckpointFiles],
    stopwatch: Stopwatch,
    progress: Progress,
) -> SteerReport:
    """Write a stream of edits as `output` says, check it, and put it in place by one rename.

    Args:
        checkpoint: the base.
        writer: of the tensors that `edits` brings.
        edits: the stream; see `edited_weights`.
        ahead: how many edited tensors may wait to be written.
        manifest_of: makes the manifest of what was written, without what is generated afterwards.
        output: where and how to write.
        sources: directories and files that are read, which no output may replace.
        stopwatch, progress: told of every stage.

    Raises:
        QkeditError: nothing was put in place.
    """
    started, planned = time.perf_counter(), writer.planned
    refuse_base_files(checkpoint, {entry.shard for entry in planned.values()}, output)
    changed = sum(entry.nbytes for entry in planned.values())
    to_write = writer.bytes_to_write
    progress.start(len(planned), to_write + (to_write + changed if output.verify else 0))
    with (
        StagedDirectory(
            output.out, overwrite=output.overwrite, force=output.force, sources=_directories(*sources)
        ) as staged,
        prefetch(edits, ahead) as edited,
    ):
        for files in sources:
            files.check_unchanged()
        refuse_without_room(staged.path, checkpoint, planned, output)
        with writer.writing(staged.path, edited) as written:
            manifest = manifest_of(written).with_generated({}, written.kept)
            generated = writer.generated(manifest)
            manifest = manifest.with_generated(generated, written.kept)
        for name, content in {MANIFEST_FILE: manifest.to_json(), **generated}.items():
            write_file(staged.path / name, content)
        with stopwatch("verification"):
            verification = _verified(staged.path, manifest, checkpoint, output, progress) if output.verify else None
        for files in sources:  # nothing is read after this
            files.check_unchanged()
        with explained("measure the output", staged.path):
            in_output = sum(path.stat().st_size for path in staged.path.rglob("*") if path.is_file())
        stopwatch.add("fsync", staged.commit(fsync=output.fsync))
    return SteerReport(
        out=output.out,
        layout=output.layout,
        manifest=manifest,
        left_out=writer.left_out,
        bytes_changed=changed,
        bytes_in_output=in_output,
        seconds=stopwatch.seconds | {"total": time.perf_counter() - started},
        warnings=tuple(warnings_of(manifest, writer.left_out)),
        verification=verification,
    )


def _verified(
    staging: Path, manifest: Manifest, checkpoint: Checkpoint, output: OutputOptions, progress: Progress
) -> Verification:
    """Compare everything that was written with the base. Raises VerificationError if something differs."""
    from qkedit.steering.verify import compare_with_base, mismatched

    result = compare_with_base(staging, manifest, checkpoint, progress.bytes_done)
    if result.mismatches:
        raise mismatched(result, output.out, "nothing was put in place; check the disk and the memory, then run again")
    return replace(result, directory=str(output.out))


def _directories(*sources: CheckpointFiles) -> list[Path]:
    """The directories that are read from and the files that their links lead to: no output may replace any of them."""
    local = [files for files in sources if isinstance(files, LocalFiles)]
    return [files.directory for files in local] + [files.local_path(file) for files in local for file in files.sizes()]
