"""The main job: plan → read → edit → write → check → one rename."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.checkpoint.checkpoint import Checkpoint
from qkedit.checkpoint.io.copying import LinkMode
from qkedit.checkpoint.io.file_errors import explained
from qkedit.checkpoint.io.header import TensorEntry
from qkedit.checkpoint.io.ownership import Replaced
from qkedit.checkpoint.io.source import CheckpointFiles, LocalFiles
from qkedit.checkpoint.io.staging import StagedDirectory
from qkedit.checkpoint.io.target import locate, refuse_existing, refuse_misplaced
from qkedit.errors import CheckpointError, UsageError, counted
from qkedit.spectral.options import NEAR_EQUAL, Channel, Control, Suppression
from qkedit.steering.base import open_base
from qkedit.steering.base_files import adapter_warning, refuse_base_files
from qkedit.steering.edit_record import EditRecord
from qkedit.steering.engine.device import choose_device
from qkedit.steering.engine.pace import pace_for, pace_of
from qkedit.steering.engine.prefetch import in_background
from qkedit.steering.engine.progress import Progress, Silent
from qkedit.steering.engine.reading import delta_entries, read_bytes, stored_layers
from qkedit.steering.engine.stopwatch import Stopwatch
from qkedit.steering.manifest import DELTA_FILE, make_manifest, previous_manifest, read_manifest, records_of
from qkedit.steering.options import ComputeDtype, Layout, OutputOptions, SteerOptions
from qkedit.steering.outputs.disk_space import refuse_without_room
from qkedit.steering.outputs.names import files_of_output
from qkedit.steering.outputs.writers import ManifestMaker, write_delta, write_full
from qkedit.steering.plan import SteerPlan, plan_for
from qkedit.steering.verify import Verification, compare_with_base, mismatched

if TYPE_CHECKING:
    from torch import Tensor

    from qkedit.steering.outputs.writers import EditedTensors


@dataclass(frozen=True)
class SteerReport:
    """What a finished run did.

    `left_out` holds the base's files that are not in the output, with the reasons. `seconds` are per station; stations
    overlap, so they add up to more than `total`. `warnings` are what a reader should know before trusting the edit.
    `verification` is None where none was asked for.
    """

    out: Path
    layout: Layout
    manifest: dict[str, Any]
    left_out: dict[str, str]
    bytes_changed: int
    bytes_in_output: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    verification: Verification | None = None

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Every edited head's entry of the manifest."""
        return [head for tensor in self.manifest["tensors"] for head in tensor["heads"]]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as `--json` prints it, the manifest included."""
        return asdict(self) | {"out": str(self.out)}


def steer(
    model: str | Path,
    *,
    out: str | Path,
    layers: str = "mid",
    heads: str = "all",
    k: int = 4,
    energy: float | None = None,
    residual: float = 0.0,
    channel: Channel = "full",
    control: Control = "none",
    seed: int = 0,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    revision: str | None = None,
    layout: Layout = "full",
    link: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    follow_links: bool = False,
    keep_plugins: bool = False,
    fsync: bool = True,
    verify: bool = False,
    allow_text_only: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Suppress the dominant query-key modes of a checkpoint and write the result to a directory.

    Args:
        model: a directory, a hub id (`org/name`), an alias (`qwen2-vl`) or `demo`.
        out: the directory to write; it appears finished or not at all.
        layers: `10-20`, `3,5,8-12`, `all`, `mid` or `0.35-0.7`.
        heads: query heads, `all` or `0,3,8-12`.
        k: dominant modes to suppress in each head.
        energy: instead of k, as many modes as carry this share of the energy, in (0, 1].
        residual: share of each suppressed mode that stays, in [0, 1).
        channel: `full`, `symmetric` or `antisymmetric`.
        control: `none`, `index` or `norm`: a matched random control instead of the edit.
        seed: of the control's draws.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        compute_dtype: `float32` or `float64` arithmetic of the write-back.
        revision: branch, tag or commit of a hub model.
        layout: `full`, or `delta` for the edited tensors alone.
        link: `auto`, `copy`, `reflink`, `hard` or `symlink`, for shards that stay as they are.
        overwrite: replace an earlier output, if nothing else lies in it.
        force: replace the directory that stands there, whatever it holds.
        follow_links: take in files that links of the base lead to, wherever they are.
        keep_plugins: take along the plug-ins that are attached to the base.
        fsync: wait until the disk holds the output.
        verify: read the finished output back and compare all of it with the base before it appears.
        allow_text_only: take a checkpoint without vision too.
        progress: told how far the run is.

    Returns:
        What was done, with the manifest that stands in the output.

    Raises:
        QkeditError: one sentence of what, where and what to do; nothing was written then.

    Example:
        >>> import qkedit
        >>> report = qkedit.steer("demo", out="./edited", layers="2-5", k=4)
        >>> len(report.manifest["tensors"])
        4
    """
    suppression = Suppression(k, energy, residual, channel, control, seed)
    options = SteerOptions(layers, heads, suppression, compute_dtype, device, allow_text_only)
    output = OutputOptions(Path(out), layout, link, overwrite, fsync, verify, force, follow_links)
    return run_plan(plan_for(str(model), options, revision, keep_plugins=keep_plugins), output, progress)


def check_plan(plan: SteerPlan, output: OutputOptions | None) -> Replaced:
    """Raise what can be known to stop a run before it begins, and return the files that it would replace.

    Args:
        plan: what would be carried out.
        output: where and how; None where that is not said yet.

    Raises:
        UsageError: there is no such device, or nothing may be written there.
        CheckpointError: the base carries a manifest that cannot be continued.
    """
    previous_manifest(plan.checkpoint)
    if output is not None:
        refuse_base_files(plan.checkpoint, plan.touched_shards, output)
    if plan.options.device not in ("auto", "cpu"):  # to look for others takes torch, and a second
        choose_device(plan.options.device)
    if output is None:
        return Replaced()
    target = locate(output.out)
    refuse_misplaced(target, _directories(plan.checkpoint.files))
    return refuse_existing(target, overwrite=output.overwrite, force=output.force)


def run_plan(plan: SteerPlan, output: OutputOptions, progress: Progress | None = None) -> SteerReport:
    """Carry out a plan; see `steer`."""
    previous_manifest(plan.checkpoint)  # what cannot be continued should not be found out at the end
    stopwatch, pace = Stopwatch(), pace_of(plan)
    return _write(
        plan.checkpoint,
        plan.tensors,
        _edited_weights(plan, pace.read, stopwatch),
        pace.edited,
        lambda records, after: make_manifest(plan, str(choose_device(plan.options.device)), records, after),
        output,
        (plan.checkpoint.files,),
        stopwatch,
        progress or Silent(),
    )


def _edited_weights(plan: SteerPlan, ahead: int, stopwatch: Stopwatch) -> Iterator[tuple[str, Tensor, EditRecord]]:
    """The stream of edits; torch is imported when it is first asked for, beside the copying and the first reading."""
    with in_background(stored_layers(plan, stopwatch), ahead) as layers:
        with stopwatch("start-up"):
            from qkedit.steering.engine.edited_weights import edited_weights

            device = choose_device(plan.options.device)
        yield from edited_weights(layers, plan, device, stopwatch)


def apply_delta(
    delta: str | Path,
    *,
    base: str,
    output: OutputOptions,
    revision: str | None = None,
    keep_plugins: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Make the full directory from a delta and the model it was made from, byte-equal to steering directly.

    Args:
        delta: a directory written with the delta layout.
        base: the model that was steered: a directory, a hub id, an alias or `demo`.
        output: where and how to write; the layout must be full.
        revision: of a hub base; the one in the delta's manifest by default.
        keep_plugins: take along the plug-ins that are attached to the base.
        progress: told how far the run is.

    Raises:
        UsageError: the output would be a delta again.
        CheckpointError: the base is not the model that the delta was made from, or the delta is damaged.
    """
    if output.layout != "full":
        raise UsageError("a delta is applied to make a full directory", where="layout", remedy="take full")
    files = LocalFiles(Path(delta))
    manifest = read_manifest(files.directory)
    checkpoint = open_base(manifest, base, revision)
    if keep_plugins:
        checkpoint = checkpoint.with_plugins()
    records = records_of(manifest, checkpoint.tensors)
    largest = max(record.tensor.nbytes for record in records)
    stopwatch = Stopwatch()
    return _write(
        checkpoint,
        {record.tensor.name: record.tensor for record in records},
        _delta_weights(files, checkpoint.files, records, manifest, stopwatch),
        pace_for(largest, largest).edited,
        lambda records, after: manifest | {"files": files_of_output(checkpoint)},
        output,
        (checkpoint.files, files),
        stopwatch,
        progress or Silent(),
    )


def _delta_weights(
    delta: CheckpointFiles,
    base: CheckpointFiles,
    records: list[EditRecord],
    manifest: dict[str, Any],
    stopwatch: Stopwatch,
) -> Iterator[tuple[str, Tensor, EditRecord]]:
    """The same stream as `edited_weights`, taken from a delta; base and delta are checked against the manifest."""
    with stopwatch("start-up"):
        from qkedit.steering.engine.edited_weights import read_tensor, sha256

    entries = delta_entries(delta)
    expected = {tensor["name"]: tensor["sha256_after"] for tensor in manifest["tensors"]}
    for record in records:
        name = record.tensor.name
        entry = entries.get(name)
        whole = entry is not None and (entry.dtype, entry.shape) == (record.tensor.dtype, record.tensor.shape)
        with stopwatch("reading"):
            original = hashlib.sha256(read_bytes(base, record.tensor)).hexdigest()
            edited = read_tensor(delta, entries[name]) if whole else None
        if original != record.sha256_before:
            raise CheckpointError(
                f"tensor {name} is not the one that was edited",
                where=base.name,
                remedy="give the model that the delta was made from, at the same revision",
            )
        if edited is None or sha256(edited) != expected[name]:
            raise CheckpointError(
                f"tensor {name} is missing or damaged", where=DELTA_FILE, remedy="make or fetch the delta again"
            )
        yield name, edited, record


def _write(
    checkpoint: Checkpoint,
    planned: dict[str, TensorEntry],
    edits: EditedTensors,
    ahead: int,
    manifest_of: ManifestMaker,
    output: OutputOptions,
    sources: Sequence[CheckpointFiles],
    stopwatch: Stopwatch,
    progress: Progress,
) -> SteerReport:
    started = time.perf_counter()
    refuse_base_files(checkpoint, {entry.shard for entry in planned.values()}, output)
    changed = sum(entry.nbytes for entry in planned.values())
    full = output.layout == "full"
    to_write = checkpoint.kept_bytes if full else changed
    progress.start(len(planned), to_write + (to_write + changed if output.verify else 0))
    with (
        StagedDirectory(
            output.out, overwrite=output.overwrite, force=output.force, sources=_directories(*sources)
        ) as staged,
        in_background(edits, ahead) as edited,
    ):
        for files in sources:
            files.check_unchanged()
        refuse_without_room(staged.path, checkpoint, planned, output)
        if full:
            manifest = write_full(
                staged.path, checkpoint, planned, edited, manifest_of, LinkMode(output.link), stopwatch, progress
            )
        else:
            manifest = write_delta(staged.path, planned, edited, manifest_of, stopwatch, progress)
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
        left_out=checkpoint.left_out if full else {},
        bytes_changed=changed,
        bytes_in_output=in_output,
        seconds=stopwatch.seconds | {"total": time.perf_counter() - started},
        warnings=tuple(_warnings(manifest, checkpoint.left_out if full else {})),
        verification=verification,
    )


def _verified(
    staging: Path, manifest: dict[str, Any], checkpoint: Checkpoint, output: OutputOptions, progress: Progress
) -> Verification:
    """Compare everything that was written with the base. Raises VerificationError if something differs."""
    result = compare_with_base(staging, manifest, checkpoint, progress.bytes_done)
    if result.mismatches:
        raise mismatched(result, output.out, "nothing was put in place; check the disk and the memory, then run again")
    return replace(result, directory=str(output.out))


def _directories(*sources: CheckpointFiles) -> list[Path]:
    """The directories that are read from and the files that their links lead to: no output may replace any of them."""
    local = [files for files in sources if isinstance(files, LocalFiles)]
    return [files.directory for files in local] + [files.local_path(file) for files in local for file in files.sizes()]


def _warnings(manifest: dict[str, Any], left_out: dict[str, str]) -> Iterator[str]:
    """What a reader should know before trusting the edit."""
    adapter = adapter_warning(left_out.items())
    if adapter is not None:
        yield adapter
    options = manifest["options"]
    heads = [head for tensor in manifest["tensors"] for head in tensor["heads"]]
    if "understood_as" in manifest:
        yield manifest["understood_as"]
    near_equal = sum(head["gap"] is not None and head["gap"] < NEAR_EQUAL for head in heads)
    if near_equal and options["control"] == "none":
        yield (
            f"{counted(near_equal, 'head has', 'heads have')} near-equal values at the cut (gap < {NEAR_EQUAL}): "
            "which modes went is arbitrary"
        )
    if options["energy"] is None:
        fewer = sum(len(head["suppressed"]) < options["k"] for head in heads)
        if fewer:
            having = counted(fewer, "head has", "heads have")
            yield f"{having} fewer than {options['k']} modes to suppress; what was there was taken"
    overshooting = sum(head.get("scale", 0) > 2 for head in heads)
    if overshooting:
        pushed = counted(overshooting, "head")
        yield f"the norm-matched control pushes directions of {pushed} past zero (scale above 2)"
    if options["channel"] != "full":
        enlarged = sum(head["relative_change"] > 1 for head in heads)
        if enlarged:
            yield (
                f"{counted(enlarged, 'head')} moved by more than 100% of the norm: the keys are ill-conditioned, and "
                f"writing the {options['channel']} part back through them enlarges it"
            )
    norms = sorted({tensor["norm"] for tensor in manifest["tensors"] if "norm" in tensor})
    if norms:
        yield (
            f"queries and keys are normalised ({', '.join(norms)}): the gains are part of the edited product, and "
            "the normaliser scales up what remains of an edited head's logits"
            + (", and of the other heads of its layer" if any("over all heads" in norm for norm in norms) else "")
        )
    if any("key_bias_effect" in head for head in heads):
        yield "keys have biases or shifts: logits also change by what no mode shows (key_bias_effect in the manifest)"
