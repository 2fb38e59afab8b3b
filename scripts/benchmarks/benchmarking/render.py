"""Render the results as Markdown, for the documentation and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarking.results import Benchmark, Ratio
from benchmarking.timing import Timing

NOTES = """\
Seconds are medians of the repetitions (fastest to slowest in brackets), which took turns; a ratio is the quotient of \
the two medians next to it. Every command ran as a process of its own. Waiting for the disk (fsync) is reported \
separately: `cp` does not wait, `steer` and `apply` do, and their seconds exclude it unless noted otherwise. \
"Without start-up" are the seconds that the command reports itself, without the interpreter and its imports. A full \
output imports torch while it copies, so that import is included. A delta's import is excluded, and with it the work \
that is done meanwhile: reading and hashing the first layers. Stages run concurrently inside a command, so their sum \
is larger than the whole; there, `hashing` includes the SHA-256 of the original tensors. The floor of a stage is a \
plain loop over the same bytes; that of the mathematics consists of its matrix products and batched small \
decompositions on operands in memory. Peak memory is the kernel's record of resident memory, including mapped file \
pages."""

MERGEKIT_NOTE = """\
The input of mergekit (`passthrough`) was the language model alone, as a text model, since it cannot read the \
vision-language configuration. It wrote fewer bytes than `steer`, which copied the whole directory, and did not hash \
or check its output."""


def markdown(benchmark: Benchmark) -> str:
    """Return the results as a Markdown document."""
    return "\n".join(
        [
            *_facts(benchmark),
            *_section("Ratios", ("ratio", "of", "to", "quotient", "aim"), map(_ratio_row, benchmark.ratios)),
            *_section(
                "Commands",
                ("command", "process", "fsync", "without start-up", "peak memory", "written"),
                _command_rows(benchmark),
            ),
            *_section(
                "Stages",
                (
                    "stage",
                    "bytes",
                    "ours alone",
                    "floor",
                    "quotient",
                    "in `steer`",
                    "in `steer` to a delta",
                ),
                _stage_rows(benchmark),
            ),
            *_section(
                "The floor of the mathematics",
                ("part", "seconds"),
                ([name, _timing(timing)] for name, timing in benchmark.mathematics_floor.items()),
            ),
            *_section(
                "Other routes",
                ("route", "measured", "seconds", "times", "all layers"),
                (
                    [
                        route.name,
                        route.measured,
                        _timing(route.seconds),
                        str(route.times),
                        _s(route.extrapolated),
                    ]
                    for route in benchmark.routes
                ),
            ),
            NOTES,
            *(["", MERGEKIT_NOTE] if "mergekit" in benchmark.commands else []),
            "",
        ]
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the result of `describe_machine` in one line."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {_bytes(machine['memory_bytes'])} of memory, "
        f"{machine['file_system']}, {machine['kernel']}, Python {machine['python']}, {libraries}, {machine['cp']}; "
        f"{machine['date']}, load {machine['load_average']:.2f} at the start, vm.dirty_ratio "
        f"{machine['dirty_ratio']}."
    )


def _facts(benchmark: Benchmark) -> Iterator[str]:
    machine, settings = benchmark.machine, benchmark.settings
    yield machine_line(machine)
    yield ""
    yield (
        f"{settings['model']}, {_bytes(settings['directory_bytes'])}: layers {settings['layers']} "
        f"({settings['tensors']} query projections, {settings['heads']} heads), k {settings['k']}, "
        f"{_bytes(settings['bytes_to_read'])} read and {_bytes(settings['bytes_to_write'])} changed; mathematics "
        f"on {machine['device']} with {settings['threads']} threads; each measured {settings['repeats']} times; page "
        f"cache {_cache(benchmark)}."
    )
    yield ""


def _cache(benchmark: Benchmark) -> str:
    settings = benchmark.settings
    if settings["cache"] == "cold":
        return "cold: the checkpoint was dropped from it before each run"
    state = "warm: the checkpoint was read once before each run"
    if 2 * settings["directory_bytes"] > benchmark.machine["memory_bytes"]:
        state += ", though it and a copy of it do not fit into memory together"
    return state


def _section(title: str, head: tuple[str, ...], rows: Iterable[list[str]]) -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield from (f"### {title}", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *lines, "")


def _ratio_row(ratio: Ratio) -> list[str]:
    figure = _s if ratio.unit == "s" else _bytes
    aim = f"≤ {ratio.goal:.2f}" if ratio.goal is not None else ""
    return [ratio.name, figure(ratio.numerator), figure(ratio.denominator), f"{ratio.value:.2f}", aim]


def _command_rows(benchmark: Benchmark) -> Iterator[list[str]]:
    for name, command in benchmark.commands.items():
        written, peak = command.runs[0].bytes_written, command.peak_bytes
        yield [
            f"`{name}`",
            _timing(command.process),
            _timing(command.fsync) if command.fsync.median else "",
            _timing(command.inside) if command.inside else "",
            "" if peak is None else _bytes(peak),
            "" if written is None else _bytes(written),
        ]


def _stage_rows(benchmark: Benchmark) -> Iterator[list[str]]:
    full, delta = (benchmark.commands[name].stages for name in ("steer", "steer delta"))
    for name, stage in benchmark.stages.items():
        yield [
            name,
            "" if stage.nbytes is None else _bytes(stage.nbytes),
            _timing(stage.ours),
            _timing(stage.floor),
            f"{stage.ours.median / stage.floor.median:.2f}",
            _s(full[name]) if name in full else "",
            _s(delta[name]) if name in delta else "",
        ]


def _timing(timing: Timing) -> str:
    if len(timing.seconds) == 1:
        return _s(timing.median)
    return f"{_s(timing.median)} ({_s(min(timing.seconds))}–{_s(max(timing.seconds))})"


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
