"""`qkedit demo`: the three methods and their controls on scenes with known ground truth."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver, plot_file
from qkedit.cli.flags.edit import EditFlags
from qkedit.cli.flags.flag import flag
from qkedit.cli.flags.laboratory import ExperimentFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.output import Output, command
from qkedit.errors import counted

if TYPE_CHECKING:
    from qkedit.laboratory.demonstration import Demonstration


def demo(
    context: typer.Context,
    *,
    model: ModelFlags,
    edit: EditFlags,
    experiment: ExperimentFlags,
    all_arms: Annotated[
        bool,
        flag(
            "--all-arms", help="Also run norm-matched controls, and the plug-ins on the edited model: twice the time."
        ),
    ] = False,
    plot: Annotated[Path | None, flag("--plot", help="Write a plot: .png, .svg or .pdf.")] = None,
    save: Annotated[
        Path | None, flag("--save", help="Write scenes, questions, answers and scores to this new directory.")
    ] = None,
) -> None:
    """Show the effect of steering, SCR and DSCR on hallucination, compared with random controls, on synthetic scenes.

    Without MODEL, the embedded model demo is used, which was trained on such scenes. Another vision-language
    model gets the same prompts, for which it was not trained. Captions are scored by CHAIR and by CIDEr (of plain
    words), questions by POPE, and every figure has its interval and its difference from the unedited model. Only the
    files you name are written.

    Example: qkedit demo --layers 2-5 --k 4 --plot demo.png
    """
    with command(context) as output:
        from qkedit.cli.progress import counting_bar
        from qkedit.laboratory.arms import demonstration_arms
        from qkedit.laboratory.demonstration import demonstrate
        from qkedit.laboratory.saved_files import check_place
        from qkedit.report.plots import check_plot
        from qkedit.steering.base import is_edited

        if plot is not None:
            check_plot(plot, "--plot")
        if save is not None:
            check_place(save)
        model_spec, processes = experiment.model_and_workers(context, model)
        if is_edited(model_spec.model):
            output.warn(f"{model_spec.model} was edited before, and is edited again here: base is the edited model")
        # On the CPU, so that the edit is the same everywhere; it takes little time compared with the answers.
        steer = edit.request(context, output, device="cpu")
        with counting_bar(output, "arms") as watch:
            result = demonstrate(
                model_spec,
                demonstration_arms(steer, experiment.seeds, all_arms),
                experiment.scene_range(model_spec.model),
                processes,
                watch=watch,
            )
        _print(output, result, plot, save)


def _print(output: Output, result: Demonstration, plot: Path | None, save: Path | None) -> None:
    from rich.console import Group

    from qkedit.report.experiments.arms_plot import arms_plot
    from qkedit.report.experiments.arms_table import ArmsTables
    from qkedit.report.strength import strength
    from qkedit.report.terminal_text import on_one_line
    from qkedit.report.verdict import verdict
    from qkedit.selection import describe

    for sentence in result.warnings:
        output.warn(sentence)
    title = (
        f"{result.model_spec.model}: layers {describe(result.layers)} edited, {counted(result.scenes.count, 'scene')}"
    )
    closing, found = [], verdict(result.edited, result.to_controls) if result.edited is not None else None
    if result.edited is not None and result.edited.energy_removed is not None:
        removed = result.edited.energy_removed
        closing.append(f"Edit: {removed:.0%} of the energy of the query-key products removed, {strength(removed)}.")
    if found is not None:
        closing += [f"Verdict: {found.text}.", f"Next: {found.next_step}"]
    files = plot_file(plot, partial(arms_plot, result.rows, title))
    if save is not None:
        files[save] = lambda: result.save(save)
    fields = result.as_dict() | {"verdict": None if found is None else asdict(found)}
    deliver(output, fields, Group(on_one_line(title), "", ArmsTables(result.rows), "", *closing), files)
