"""`qkedit eval --each`: the model and each of its edits and plug-ins over the same questions, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.cli.delivery import deliver
from qkedit.cli.flags.plugins import spelled

if TYPE_CHECKING:
    from qkedit.cli.output import Output
    from qkedit.evaluation.runs.arms import Arm
    from qkedit.evaluation.runs.backend import Backend
    from qkedit.evaluation.runs.tasks import Task
    from qkedit.plugins.settings import PluginSettings


def run_each(
    output: Output,
    backend_of: Callable[[Arm], Backend],
    tasks: Sequence[Task],
    images: Path,
    out: Path,
    *,
    edits: Sequence[str],
    plugins: Sequence[PluginSettings],
    plugins_named: bool,
    prompt: str | None,
    limit: int | None,
    overwrite: bool,
) -> None:
    """Evaluate a model and its edits and plug-ins, each as an arm, and print their differences from the base.

    Args:
        output: of the command.
        backend_of: as for `evaluate_arms`.
        tasks: what is asked.
        images: the directory of the images.
        out: the directory in which each arm gets one of its name.
        edits: directories of edits, one arm for each.
        plugins: the plug-ins, one arm for each.
        plugins_named: whether plug-ins were named, and not attached to the model: those act in every arm.
        prompt, limit, overwrite: as for `evaluate`.
    """
    from qkedit.cli.progress import counting_bar
    from qkedit.evaluation.runs.arms import arms_of, evaluate_arms
    from qkedit.report.runs.arms import RunArmsTable

    arms = arms_of(edits, plugins if plugins_named else (), () if plugins_named else plugins)
    with counting_bar(output, "answers") as watch:
        finished = evaluate_arms(
            backend_of, arms, tasks, images, out, prompt=prompt, limit=limit, overwrite=overwrite, watch=watch
        )
    for sentence in finished.warnings:
        output.warn(sentence)
    # Two arms can be the same plug-in with other options.
    titles = {
        arm.name: spelled(arm.plugins[-1]) for arm in arms if not arm.edits and len(arm.plugins) > len(arms[0].plugins)
    }
    done = [run.file for run in finished.runs.values()]
    deliver(output, finished.as_dict(), RunArmsTable(finished.against_base, titles), {}, done=done)
