"""`qkedit sweep`: try a grid of edits with controls on one half of the scenes, and confirm the best on the other."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver, plot_file
from qkedit.cli.flags.edit import ProductOption, ProtectOption, SpareOption, share_that_stays
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.laboratory import ExperimentFlags
from qkedit.cli.flags.model import ArchitecturesOption, ModelFlags
from qkedit.cli.output import GO_ON, Output, command

if TYPE_CHECKING:
    from qkedit.laboratory.sweep import SweepReport

GRID = "Grid"
CHOICE = "What to choose by"


def sweep(
    context: typer.Context,
    *,
    model: ModelFlags,
    layers: Annotated[
        str,
        flag(
            "--layers", panel=GRID, help="Alternatives, separated by ; and each written as for steer: '0-1;2-3;mid'."
        ),
    ] = "0.0-0.25;0.25-0.5;0.5-0.75;0.75-1.0",
    k: Annotated[str, flag("--k", "-k", panel=GRID, help="Numbers of modes per head: 1,2,4,8.")] = "1,2,4,8",
    channel: Annotated[
        str, flag("--channel", panel=GRID, help="Parts of the product: symmetric,full,antisymmetric.")
    ] = "symmetric,full",
    retain: Annotated[
        str, flag("--retain", panel=GRID, help="Shares of each suppressed mode that stay: 0,0.5.")
    ] = "0",
    residual: Annotated[
        str | None, flag("--residual", help="The same as --retain, by its old name.", hidden=True)
    ] = None,
    product: ProductOption = "raw",
    protect: ProtectOption = "none",
    spare: SpareOption = "none",
    control: Annotated[
        str, flag("--control", panel=GRID, help="Kind of the random controls: index or norm.")
    ] = "index",
    experiment: ExperimentFlags,
    objective: Annotated[
        str, flag("--objective", panel=CHOICE, help="The measure to improve, such as f1_adversarial.")
    ] = "chair_s",
    no_worse: Annotated[
        str,
        flag(
            "--no-worse",
            panel=CHOICE,
            help="Limits on how much other measures may get worse: MEASURE:TOLERANCE,… or none.",
        ),
    ] = "recall:0.02",
    out: Annotated[
        Path | None,
        flag("--out", "-o", help="Write results to this file (JSON lines); an interrupted sweep resumes from it."),
    ] = None,
    plot: Annotated[Path | None, flag("--plot", help="Write a heatmap: .png, .svg or .pdf.")] = None,
    detail: Annotated[bool, flag("--detail", help="Show every cell, not only the best.")] = False,
    architectures: ArchitecturesOption = None,
) -> None:
    """Try a grid of edits on synthetic scenes, each against random controls, and confirm the best.

    Edits are made in memory. Cells are ranked on the first half of the scenes; the second half is only for the
    best cell, its controls and the base. A short caption hallucinates little, so by default recall must not fall by
    more than 2 points. Without MODEL, the embedded model demo is used; any vision-language model that can be
    steered and accepts images in prompts gets the same prompts about the same scenes.

    Measures: chair_s, chair_i, recall, mean_words, cider, and accuracy, f1, hr with _random, _popular, _adversarial.

    Example: qkedit sweep --layers '2-3;4-5;6-7' --k 1,2,4 --out sweep.jsonl --plot sweep.png
    """
    with command(context, architectures) as output:
        from qkedit.cli.progress import counting_bar
        from qkedit.laboratory.results_file import ResultsFile
        from qkedit.laboratory.sweep import run_sweep
        from qkedit.laboratory.sweep_setup import prepare
        from qkedit.laboratory.tuning.goal import guards
        from qkedit.laboratory.tuning.option_lists import alternatives, names, shares, whole_numbers
        from qkedit.report.files import check_target
        from qkedit.report.plots import check_plot
        from qkedit.spectral.sink import protected_directions

        if plot is not None:
            check_plot(plot, "--plot")
        if out is not None:
            check_target(out, (".jsonl",), "--out")
        model_spec, processes = experiment.model_and_workers(context, model)
        settings = prepare(
            model_spec,
            layers=alternatives(layers),
            ks=whole_numbers(k, "--k"),
            channels=names(channel, "--channel"),  # type: ignore[arg-type]  # the names are checked where they are used
            retains=shares(share_that_stays(context, output, retain, residual), "--retain"),
            control=control,  # type: ignore[arg-type]
            seeds=experiment.seeds,
            objective=objective,
            guards=guards(no_worse),
            scenes=experiment.scene_range(model_spec.model),
            protect=protected_directions(protect),
            spare=spare,  # type: ignore[arg-type]  # checked where it is used
            product=product,  # type: ignore[arg-type]
        )
        if out is not None:
            output.after_interruption = f"{GO_ON} from what {out} holds"
        with (
            ResultsFile(out, settings.as_dict()) if out is not None else nullcontext() as file,
            counting_bar(output, "arms") as watch,
        ):
            report = run_sweep(model_spec, settings, file, processes, watch)
        for sentence in report.warnings:
            output.warn(sentence)
        _print(output, report, plot, out, detail)


def _print(output: Output, report: SweepReport, plot: Path | None, out: Path | None, detail: bool) -> None:
    from qkedit.report.experiments.sweep_plot import sweep_plot
    from qkedit.report.experiments.sweep_table import SweepTables

    files = plot_file(plot, partial(sweep_plot, report))
    deliver(output, report.as_dict(), SweepTables(report, detail), files, done=[out])
