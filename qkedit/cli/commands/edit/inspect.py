"""`qkedit inspect`: show a model's query-key spectra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver
from qkedit.cli.flags.edit import (
    ChannelOption,
    EditFlags,
    HeadsOption,
    LayersOption,
    ProductOption,
    ProtectOption,
    SpareOption,
)
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.model import ArchitecturesOption, DeviceOption, ModelFlags, TextOnlyOption
from qkedit.cli.output import Output, command
from qkedit.cli.settings import on_command_line
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from qkedit.inspection.spectra import Inspection
    from qkedit.inspection.suggestion import Suggestion
    from qkedit.steering.plan import SteerPlan

VIEW = "What to show"
# The value of `--compare` for the base in an edited model's manifest.
BASE = "base"


def inspect(
    context: typer.Context,
    *,
    model: ModelFlags,
    layers: LayersOption = "all",
    heads: HeadsOption = "all",
    k: Annotated[int | None, flag("--k", "-k", panel=VIEW, help="Modes that count as dominant.  [default: 4]")] = None,
    energy: Annotated[
        float | None,
        flag("--energy", panel=VIEW, help="Instead of --k: as many modes as carry this share of the energy."),
    ] = None,
    channel: ChannelOption = "full",
    product: ProductOption = "raw",
    protect: ProtectOption = "none",
    spare: SpareOption = "none",
    offset: Annotated[
        str,
        flag("--offset", panel=VIEW, help="Positions between query and key: 5, or 0,3,-2 (temporal, height, width)."),
    ] = "0",
    detail: Annotated[
        bool, flag("--detail", panel=VIEW, help="Print one row per head instead of one per layer.")
    ] = False,
    compare: Annotated[
        str | None,
        flag("--compare", panel=VIEW, help="Another model of the same shape, or base for the model that was edited."),
    ] = None,
    base: Annotated[
        str | None, flag("--base", panel=VIEW, help="Compare this base with MODEL, its edited copy.")
    ] = None,
    suggest: Annotated[
        bool, flag("--suggest", panel=VIEW, help="Propose layers and k for steer (a heuristic).")
    ] = False,
    csv: Annotated[
        Path | None, flag("--csv", panel=VIEW, help="Write one line per head to this file; - for standard output.")
    ] = None,
    plot: Annotated[Path | None, flag("--plot", panel=VIEW, help="Write a plot: .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, flag("--html", panel=VIEW, help="Write one self-contained page.")] = None,
    allow_text_only: TextOnlyOption = False,
    device: DeviceOption = "auto",
    architectures: ArchitecturesOption = None,
) -> None:
    """Show the singular spectra of a model's query-key products, before or after an edit.

    The model comes first or as --model. Only query and key projections are
    read, and only the files you name are written.

    Example: qkedit inspect qwen2-vl --layers 10-20 --suggest
    """
    with command(context, architectures) as output:
        from qkedit.inspection.positions import parse_offset
        from qkedit.steering.base import split_revision
        from qkedit.steering.plan import plan_for

        files = _Files(csv, plot, html)
        files.check(as_json=output.as_json)
        edit = EditFlags(layers, heads, k, energy, channel=channel, product=product, protect=protect, spare=spare)
        request = edit.request(context, output, device=device, allow_text_only=allow_text_only)
        name, revision, place = model.name(context), model.revision, parse_offset(offset)
        if compare != BASE and not on_command_line(context, "base"):
            base = None  # a base that is set for verify and apply does not request a comparison
        if compare is not None or base is not None:
            if compare not in (None, BASE) and base is not None:
                raise UsageError("both name a model to compare with", where="--compare, --base", remedy="give one")
            without = {"--offset": any(place), "--suggest": suggest, "--plot": plot, "--html": html}
            without |= {"--product": product != "raw", "--protect": bool(request.protect), "--spare": spare != "none"}
            for flag, given in without.items():
                if given:
                    raise UsageError(
                        "is not available in a comparison", where=flag, remedy="inspect one model at a time"
                    )
            if compare == BASE and base is None and Path(BASE).is_dir():
                raise UsageError(
                    "the name means the model's base, but there is also a directory of this name",
                    where=f"--compare {BASE}",
                    remedy=f"write ./{BASE} for the directory, or name the other with --base",
                )
            with_base = base is not None or compare == BASE
            own, of_base = split_revision(name, revision) if with_base else (revision, None)
            _compare(output, plan_for(name, request, own), compare, base, of_base, detail, files)
        else:
            plan = plan_for(name, request, revision)
            if plan.needs_run:
                from qkedit.runtime.editing import with_run_of  # imports torch

                plan = with_run_of(plan, name, revision)
            _inspect(output, name, plan, place, detail, suggest, files)


@dataclass(frozen=True)
class _Files:
    """The files to write in addition to the printed result."""

    csv: Path | None
    plot: Path | None
    html: Path | None

    @property
    def csv_on_stdout(self) -> bool:
        return self.csv == Path("-")

    def check(self, *, as_json: bool) -> None:
        """Refuse files that could not be written, before any work is done."""
        from qkedit.report.files import check_target
        from qkedit.report.plots import check_plot

        if self.csv_on_stdout and as_json:
            raise UsageError("standard output cannot hold both", where="--csv - and --json", remedy="name a CSV file")
        if self.csv is not None and not self.csv_on_stdout:
            check_target(self.csv, (".csv",), "--csv")
        if self.plot is not None:
            check_plot(self.plot, "--plot")
        if self.html is not None:
            check_target(self.html, (".html", ".htm"), "--html")

    def writing(self, **contents: Callable[[], bytes]) -> dict[Path, Callable[[], object]]:
        """Return a writer for each requested file, given the functions that make the contents."""
        from qkedit.report.files import write_file

        places = {"csv": None if self.csv_on_stdout else self.csv, "plot": self.plot, "html": self.html}
        asked = [(places[name], make) for name, make in contents.items()]

        def writer(place: Path, make: Callable[[], bytes]) -> Callable[[], object]:
            return lambda: write_file(place, make())

        return {place: writer(place, make) for place, make in asked if place is not None}


def _inspect(
    output: Output,
    name: str,
    plan: SteerPlan,
    offset: tuple[int, int, int],
    detail: bool,
    suggest: bool,
    files: _Files,
) -> None:
    from rich.console import Group
    from rich.text import Text

    from qkedit.cli.progress import progress_bar
    from qkedit.inspection.spectra import inspect
    from qkedit.inspection.suggestion import suggest as proposal
    from qkedit.report.spectra.csv_file import spectra_csv
    from qkedit.report.spectra.page import spectra_page
    from qkedit.report.spectra.table import SpectrumTable

    with progress_bar(output) as progress:
        inspection = inspect(plan, offset, progress)
    for sentence in inspection.warnings:
        output.warn(sentence)
    suggestion = proposal(inspection, plan.options, name) if suggest else None
    writing = files.writing(
        csv=lambda: spectra_csv(inspection).encode(),
        plot=lambda: _plot(inspection, files.plot),
        html=lambda: spectra_page(inspection, suggestion).encode(),
    )
    fields = inspection.as_dict() | ({"suggestion": suggestion.as_dict()} if suggestion else {})
    if files.csv_on_stdout:
        _print_csv(output, fields, spectra_csv(inspection))
        for write in writing.values():
            write()
        return
    title, table = Text(_title(inspection), style="bold"), SpectrumTable(inspection, every_head=detail)
    deliver(output, fields, Group(title, table, *_described(suggestion)), writing)


def _plot(inspection: Inspection, place: Path | None) -> bytes:
    from qkedit.report.plots import plot_format
    from qkedit.report.spectra.plot import spectra_plot

    assert place is not None
    return spectra_plot(inspection, plot_format(place))


def _compare(
    output: Output,
    plan: SteerPlan,
    compare: str | None,
    base: str | None,
    base_revision: str | None,
    detail: bool,
    files: _Files,
) -> None:

    from qkedit.checkpoint.checkpoint import open_checkpoint
    from qkedit.checkpoint.resolve import resolve
    from qkedit.cli.progress import progress_bar
    from qkedit.inspection.comparison import base_of, compare_spectra
    from qkedit.report.spectra.csv_file import comparison_csv
    from qkedit.report.spectra.table import ComparisonTable
    from qkedit.steering.plan import make_plan

    if base is not None or compare == BASE:
        before, after = make_plan(base_of(plan.checkpoint, base, base_revision), plan.options), plan
    else:
        assert compare is not None
        before, after = plan, make_plan(open_checkpoint(resolve(compare)), plan.options)
    with progress_bar(output) as progress:
        comparison = compare_spectra(before, after, progress)
    for sentence in comparison.warnings:
        output.warn(sentence)
    if files.csv_on_stdout:
        _print_csv(output, comparison.as_dict(), comparison_csv(comparison))
        return
    table = ComparisonTable(comparison, every_head=detail)
    deliver(output, comparison.as_dict(), table, files.writing(csv=lambda: comparison_csv(comparison).encode()))


def _title(inspection: Inspection) -> str:
    from qkedit.report.terminal_text import on_one_line
    from qkedit.selection import describe

    layers = [layer.layer for layer in inspection.layers]
    model = on_one_line(inspection.model)
    return f"{model}: query-key spectra of {'layer' if len(layers) == 1 else 'layers'} {describe(layers)}"


def _described(suggestion: Suggestion | None) -> list[RenderableType]:
    from rich.text import Text

    if suggestion is None:
        return []
    reason = suggestion.reason[0].upper() + suggestion.reason[1:]
    lines: list[RenderableType] = [
        "",
        Text("Suggestion (a heuristic, not a promise)", style="bold"),
        Text(f"{reason}."),
    ]
    if suggestion.command:
        lines.append(_to_copy(suggestion.command))
    lines += ["", Text(" ".join(suggestion.evidence))]
    if suggestion.tune:
        lines += [Text(suggestion.search), _to_copy(suggestion.tune)]
    return lines


def _to_copy(command: str) -> Text:
    """Return a command on one line of its own, however narrow the terminal."""
    from rich.text import Text

    from qkedit.report.terminal_text import on_one_line

    return Text(on_one_line(command), no_wrap=True, overflow="ignore")


def _print_csv(output: Output, fields: dict[str, object], text: str) -> None:
    from rich.text import Text

    output.result(fields, Text(text.rstrip("\n"), no_wrap=True, overflow="ignore"))
