"""`qkedit steer`: suppress dominant query-key modes of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.flags.edit import ComputeDtypeOption, ControlOption, EditFlags, SeedOption
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import DeviceOption, ModelFlags, TextOnlyOption
from qkedit.cli.flags.output import (
    FullOutputFlags,
    KeepOriginalOption,
    KeepPluginsOption,
    OutOption,
    RankOption,
    required_out,
)
from qkedit.cli.output import Output, aligned, command
from qkedit.cli.settings import refuse_without_effect
from qkedit.errors import counted
from qkedit.steering.processes.launch import launched

if TYPE_CHECKING:
    from qkedit.checkpoint.io.ownership import Replaced
    from qkedit.checkpoint.manifest_file import TensorEdit
    from qkedit.steering.plan import PlannedLayer, SteerPlan
    from qkedit.steering.processes.launch import Launch
    from qkedit.steering.run import SteerReport
    from qkedit.steering.steer_options import OutputOptions

_TITLES = ("layer", "form", "heads", "d_h", "edited", "size", "tensor")


def steer(
    context: typer.Context,
    *,
    model: ModelFlags,
    out: OutOption = None,
    edit: EditFlags,
    control: ControlOption = "none",
    seed: SeedOption = 0,
    layout: Annotated[
        str,
        flag(
            "--layout",
            help="What to write: the full checkpoint, a delta (only the edited tensors), or an adapter (lora).",
        ),
    ] = "full",
    rank: RankOption = None,
    keep_original: KeepOriginalOption = False,
    keep_plugins: KeepPluginsOption = False,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Show what would be done; reads headers and config only.")
    ] = False,
    allow_text_only: TextOnlyOption = False,
    device: DeviceOption = "auto",
    compute_dtype: ComputeDtypeOption = "float32",
    writing: FullOutputFlags,
) -> None:
    """Suppress the dominant query-key modes of a checkpoint and write the result.

    The model comes first or as --model. Only query projections change; everything else is copied byte for byte.

    Example: qkedit steer qwen2-vl --layers 10-20 --k 4 --out ./edited
    """
    with command(context, writing.architectures) as output:
        from qkedit.steering.plan import plan_for
        from qkedit.steering.run import assist, check_plan

        if layout != "full":
            refuse_without_effect(context, f"with --layout {layout}", "link", "keep_plugins")
        if control == "none":
            refuse_without_effect(context, "without --control", "seed")
        directory = out or Path() if dry_run else required_out(out)
        target = writing.options(directory, layout, rank=rank, keep_original=keep_original)
        request = edit.request(
            context,
            output,
            control=control,
            seed=seed,
            device=device,
            compute_dtype=compute_dtype,
            allow_text_only=allow_text_only,
        )

        def plan_of() -> SteerPlan:
            plan = plan_for(model.name(context), request, model.revision, keep_plugins=keep_plugins)
            if dry_run or not plan.needs_run:
                return plan
            from qkedit.runtime.editing import with_run_of  # imports torch

            return with_run_of(plan, model.name(context), model.revision)

        launch = launched()
        if launch and launch.rank:
            if not dry_run:
                assist(launch, plan_of, target)
            return
        plan = plan_of()
        if dry_run:
            _print_plan(output, plan, target, check_plan(plan, target if out else None), out_given=out is not None)
        else:
            _run(output, plan, target, launch)


def _run(output: Output, plan: SteerPlan, target: OutputOptions, launch: Launch | None) -> None:
    from qkedit.cli.progress import progress_bar
    from qkedit.steering.run import run_plan

    with progress_bar(output) as progress:
        report = run_plan(plan, target, progress, launch)
    print_report(output, report, ("steered", report.manifest.base.model))


def print_report(output: Output, report: SteerReport, done: tuple[str, str]) -> None:
    """Print the report of `steer`, `apply` or `export`; `done` is the first line, a verb and its object."""
    from qkedit.report.strength import energy_sentence
    from qkedit.selection import describe

    for sentence in report.warnings:
        output.warn(sentence)
    heads = report.heads
    tensors = report.manifest.tensors
    moved = [head.relative_change for head in heads]
    seconds = report.seconds
    stages = ", ".join(
        f"{name} {seconds[name]:.1f}"
        for name in ("start-up", "reading", "mathematics", "copying", "writing", "checks", "verification", "fsync")
        if seconds.get(name, 0) >= 0.05
    )
    options = report.manifest.options
    channel = options.channel if options else "full"
    spared = options.spared if options else None
    facts = [
        done,
        ("layers", f"{describe([tensor.layer for tensor in tensors])} ({counted(len(heads), 'head')})"),
        *([] if spared is None else [("spared", _spared(spared))]),
        ("energy", energy_sentence([head.energy_removed for head in heads], channel)),
        ("weights", f"moved by {_mean(moved)} of their norm ({_range(moved)})"),
        ("changed", f"{_kind_of(tensors)}, {size(report.bytes_changed)}; nothing else"),
    ]
    if channel != "full":
        missing, leak = [head.unrealized_share or 0 for head in heads], [head.leak or 0 for head in heads]
        facts.append(("realised", f"all but {_mean(missing)} of it; {_mean(leak)} leaked into the other channel"))
    if report.layout == "lora":
        facts += _adapter_facts(report)
    if report.left_out:
        facts.append(("left out", _left_out(report.left_out)))
    if report.verification is not None:
        facts.append(("verified", report.verification.sentence()))
    facts.append(("time", f"{seconds['total']:.1f} s" + (f" ({stages}; steps overlap)" if stages else "")))
    facts.append(("written", f"{report.out} ({size(report.bytes_in_output)})"))
    output.result(report.as_dict(), aligned(facts), summary=True)


def _spared(heads: Mapping[str, Sequence[int]]) -> str:
    """Return how many heads were left alone, by layer."""
    count = sum(map(len, heads.values()))
    return f"{counted(count, 'head')} left alone" if count else "none, since no head of these layers counts as copying"


def _adapter_facts(report: SteerReport) -> list[tuple[str, str]]:
    """Return the ranks of an adapter, the vLLM option it needs, and its error."""
    from qkedit.steering.adapters.peft_files import VLLM_RANKS, vllm_rank

    layers = report.manifest.adapter or ()
    ranks, errors = [layer.rank for layer in layers], [layer.error for layer in layers]
    least, rank = min(ranks), max(ranks)
    held = vllm_rank(rank)
    vllm = f"vLLM holds it with --max-lora-rank {held}" if held else f"vLLM holds at most {VLLM_RANKS[-1]}: see --rank"
    facts = [("adapter", f"rank {rank if least == rank else f'{least} to {rank}'} per layer; {vllm}")]
    if any(errors):
        facts.append(("lacks", f"{min(errors):.2g} to {max(errors):.2g} of the change (Frobenius), by layer"))
    return facts


def _left_out(files: Mapping[str, str]) -> str:
    """Return the files that are left out of an output, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in files.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())


def _kind_of(tensors: Sequence[TensorEdit]) -> str:
    if all(tensor.name.endswith("q_proj.weight") for tensor in tensors):
        return counted(len(tensors), "q_proj tensor")
    return f"{counted(len(tensors), 'tensor')} with queries (their rows alone)"


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1%}"


def _range(values: list[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%} per head"


def size(count: float) -> str:
    """Return a number of bytes for people: `25.7 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _print_plan(
    output: Output, plan: SteerPlan, target: OutputOptions, replaced: Replaced, *, out_given: bool
) -> None:
    from rich.console import Group
    from rich.text import Text

    from qkedit.checkpoint.io.ownership import shown
    from qkedit.cli.commands.edit.plan_words import plan_in_words
    from qkedit.report.fitting_table import FittingTable
    from qkedit.report.terminal_text import on_one_line
    from qkedit.selection import describe
    from qkedit.steering.outputs.disk_space import disk_needed

    disk = disk_needed(plan.checkpoint, plan.tensors, target)
    free = _free_bytes(target.out)
    fields = plan.as_dict() | {"disk_needed": disk, "disk_free": free, "replaces": replaced.as_dict()}
    table = FittingTable(*_TITLES, right=("layer", "d_h", "size"), breaking=("tensor",))
    for planned in plan.layers:
        table.add_row(*_described(planned))
    totals = [
        ("to read", size(plan.bytes_to_read)),
        ("to change", f"{counted(len(plan.tensors), 'tensor')}, {size(plan.bytes_to_write)}, in {_shards(plan)}"),
        ("disk needed", size(disk) + (f" of {size(free)} free" if free is not None else "")),
    ]
    if plan.stack.understood_as:
        output.warn(plan.stack.understood_as)
    if plan.stack.skipped:
        totals.append(("no attention", f"layers {describe([skipped.index for skipped in plan.stack.skipped])}"))
    if plan.checkpoint.left_out:
        totals.append(("left out", _left_out(plan.checkpoint.left_out)))
    for name, files in (
        ("replaced", replaced.ours),
        ("not qkedit's", replaced.others),
        ("changed since", replaced.changed),
    ):
        if files:
            totals.append((name, f"would be removed: {shown(files)}"))
    words = Text(on_one_line(plan_in_words(plan, target if out_given else None)))
    output.result(fields, Group(table, "", Text(aligned(totals)), "", words, "Nothing was written."))


def _described(planned: PlannedLayer) -> tuple[str, ...]:
    layer = planned.layer
    return (
        str(layer.index),
        layer.form + (" + bias" if layer.query_bias or layer.key_bias else ""),
        f"{layer.query_heads} on {layer.key_heads}",
        str(layer.query.head_size),
        "all" if len(planned.heads) == layer.query_heads else str(len(planned.heads)),
        size(layer.query.tensor.nbytes),
        layer.query.tensor.name,
    )


def _shards(plan: SteerPlan) -> str:
    touched, all_shards = len(plan.touched_shards), len(plan.checkpoint.shards)
    return f"{touched} of {all_shards} shards" if all_shards > 1 else "1 file"


def _free_bytes(out: Path) -> int | None:
    import os
    import shutil
    from contextlib import suppress

    with suppress(OSError):  # a working directory that is gone, a disk that does not say
        place = Path(os.path.abspath(os.path.expanduser(out)))
        return next(shutil.disk_usage(directory).free for directory in (place, *place.parents) if directory.is_dir())
    return None
