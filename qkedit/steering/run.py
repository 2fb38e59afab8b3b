"""Run an edit: plan → read → edit → write → check → one rename."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.ownership import Replaced
from qkedit.checkpoint.io.source import CheckpointFiles, directories_of
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.checkpoint.io.target import locate, refuse_existing, refuse_misplaced
from qkedit.checkpoint.manifest_file import HeadEdit, Manifest
from qkedit.spectral.sink import missing_sink
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
from qkedit.steering.plan import SteerPlan
from qkedit.steering.processes.launch import Launch
from qkedit.steering.steer_options import Layout, OutputOptions
from qkedit.stopwatch import Stopwatch

if TYPE_CHECKING:
    from qkedit.steering.verify import Verification


@dataclass(frozen=True)
class SteerReport:
    """The report of a finished run.

    `left_out` holds the base's files that are not in the output, with the reasons. `seconds` are per stage; stages
    overlap, so they add up to more than `total`. `warnings` should be read before the edit is trusted.
    `verification` is None unless it was requested.
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


def check_plan(plan: SteerPlan, output: OutputOptions | None) -> Replaced:
    """Raise every error of a run that is known before it begins, and return the files that the run would replace.

    Args:
        plan: the plan of the run.
        output: the options of the output; None if they are not known yet.

    Raises:
        UsageError: there is no such device, or the output cannot be written there.
        UnsupportedForm: an adapter is requested, and none can hold the edit.
        CheckpointError: the base carries a manifest that cannot be continued.
    """
    earlier_manifests(plan.checkpoint)
    if output is not None:
        refuse_base_files(plan.checkpoint, plan.touched_shards, output)
        writer_for(plan.checkpoint, plan.edited_layers, output, Stopwatch(), Silent())
    if plan.options.device not in ("auto", "cpu"):  # other devices need torch, whose import takes a second
        choose_device(plan.options.device)
    if output is None:
        return Replaced()
    target = locate(output.out)
    refuse_misplaced(target, directories_of(plan.checkpoint.files))
    return refuse_existing(target, overwrite=output.overwrite, force=output.force)


def run_plan(
    plan: SteerPlan, output: OutputOptions, progress: Progress | None = None, launch: Launch | None = None
) -> SteerReport:
    """Carry out a plan and write the result.

    Args:
        plan: the plan.
        output: the options of the output.
        progress: called as the work advances.
        launch: the place of this process if it is the first of several; the others call `assist`.
    """
    if plan.options.protect and plan.sink is None:
        raise missing_sink()
    earlier_manifests(plan.checkpoint)  # a history that cannot be continued must fail now, not at the end
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
    """Edit the layers of a process that is not the first, and send them to the first one.

    Args:
        launch: the place of this process.
        plan_of: makes the plan that the first process runs.
        output: the output options of the first process.

    Raises:
        QkeditError: this process failed, which the first one reports as well; or the first one has ended.
    """
    from qkedit.steering.processes.sharing import hand_over_edits

    edits_of = partial(_edited_weights, stopwatch=Stopwatch(), factored=output.layout == "lora")
    hand_over_edits(launch, plan_of, edits_of)


def _edited_weights(plan: SteerPlan, stopwatch: Stopwatch, *, factored: bool) -> Iterator[EditedTensor]:
    """Yield the edits; torch is imported at the first request, in parallel with the copies and the first reads."""
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
        writer: the writer of the tensors in `edits`.
        edits: the stream of edits; see `edited_weights`.
        ahead: the number of edited tensors that may wait to be written.
        manifest_of: makes the manifest of the written tensors, without the files that are generated afterwards.
        output: the options of the output.
        sources: the directories and files that are read, which no output may replace.
        stopwatch, progress: called at every stage.

    Raises:
        QkeditError: the output was not put in place.
    """
    started, planned = time.perf_counter(), writer.planned
    refuse_base_files(checkpoint, {entry.shard for entry in planned.values()}, output)
    changed = sum(entry.nbytes for entry in planned.values())
    to_write = writer.bytes_to_write
    progress.start(len(planned), to_write + (to_write + changed if output.verify else 0))
    with (
        StagedDirectory(
            output.out, overwrite=output.overwrite, force=output.force, sources=directories_of(*sources)
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
        for files in sources:  # no file is read after this
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
    """Compare the whole written output with the base. Raises VerificationError if anything differs."""
    from qkedit.steering.verify import compare_with_base, mismatched

    result = compare_with_base(staging, manifest, checkpoint, progress.bytes_done)
    if result.mismatches:
        raise mismatched(result, output.out, "nothing was put in place; check the disk and the memory, then run again")
    return replace(result, directory=str(output.out))
