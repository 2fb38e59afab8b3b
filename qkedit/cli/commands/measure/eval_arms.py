"""`qkedit eval --each`: the model and each of its edits and plug-ins over the same questions, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.cli.delivery import deliver

if TYPE_CHECKING:
    from qkedit.cli.output import Output
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.evaluation.runs.tasks import Task


def run_each(
    output: Output,
    model: LocalModel,
    tasks: Sequence[Task],
    images: Path,
    out: Path,
    *,
    plugins_named: bool,
    prompt: str | None,
    limit: int | None,
    overwrite: bool,
) -> None:
    """Evaluate the arms that a model's edits and plug-ins make, and print what they differ in from the base.

    Args:
        output: of the command.
        model: with all edits and plug-ins, each of which becomes an arm.
        tasks: what is asked.
        images: the directory of the images.
        out: the directory in which each arm gets one of its name.
        plugins_named: whether plug-ins were named, and not attached to the model: those act in every arm.
        prompt, limit, overwrite: as for `evaluate`.
    """
    from qkedit.cli.progress import counting_bar
    from qkedit.evaluation.runs.arms import arms_of, evaluate_arms
    from qkedit.report.runs.arms import RunArmsTable

    own, attached = (model.plugins, ()) if plugins_named else ((), model.plugins)
    arms = arms_of(model.edits, own, attached)
    bare = replace(model, edits=(), plugins=())
    with counting_bar(output, "answers") as watch:
        finished = evaluate_arms(
            bare, arms, tasks, images, out, prompt=prompt, limit=limit, overwrite=overwrite, watch=watch
        )
    for sentence in finished.warnings:
        output.warn(sentence)
    done = [run.file for run in finished.runs.values()]
    deliver(output, finished.as_dict(), RunArmsTable(finished.against_base), {}, done=done)
