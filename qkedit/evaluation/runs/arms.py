"""Run several arms over the same questions in one load: the model alone, and with each edit or plug-in.

    OUT/base/, OUT/delta-a/, OUT/scr/     one run each, as `evaluate` writes and resumes it

Each arm's directory is the same run that `evaluate` would make of that arm alone: it can be resumed, compared and
gated separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qkedit.errors import UsageError
from qkedit.evaluation.runs.evaluate import Finished, Watch, check_run, evaluate
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.evaluation.runs.run_files import RUN_FILE
from qkedit.evaluation.runs.tasks import Task
from qkedit.evaluation.statistics.intervals import require_scipy
from qkedit.plugins.settings import PluginSettings

BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: its name, which is also that of its directory.
        edits: directories of edits that are put into the loaded weights.
        plugins: the plug-ins that act.
    """

    name: str
    edits: tuple[str, ...] = ()
    plugins: tuple[PluginSettings, ...] = ()


def arms_of(
    edits: Sequence[str], plugins: Sequence[PluginSettings], always: Sequence[PluginSettings] = ()
) -> tuple[Arm, ...]:
    """Return the base and one arm per edit and per plug-in, with distinct names.

    Args:
        edits: directories of edits.
        plugins: plug-ins, one arm for each.
        always: plug-ins that act in every arm, including the base.

    Raises:
        UsageError: there is neither an edit nor a plug-in.
    """
    if not edits and not plugins:
        raise UsageError("there is one arm alone", where="--each", remedy="name an --edit or a --plugin")
    everywhere = tuple(always)
    arms = [Arm(BASE, (), everywhere)]
    arms += [Arm(Path(edit).expanduser().resolve().name, (edit,), everywhere) for edit in edits]
    arms += [Arm(plugin.name, (), (*everywhere, plugin)) for plugin in plugins]
    names: list[str] = []
    for arm in arms:
        name, number = arm.name, 1
        while name in names:
            number += 1
            name = f"{arm.name}-{number}"
        names.append(name)
    return tuple(replace(arm, name=name) for arm, name in zip(arms, names, strict=True))


def evaluate_arms(
    model: LocalModel,
    arms: Sequence[Arm],
    tasks: Sequence[Task],
    images: Path,
    out: Path,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    watch: Watch = lambda done, total: None,
) -> list[Finished]:
    """Ask every arm the same questions, one arm after another; the model is loaded at most once.

    Args:
        model: the model without edits and plug-ins; it is not loaded if all questions are answered.
        arms: the arms.
        tasks: the questions.
        images: the directory of the images.
        out: the directory in which each arm gets a directory with its name; interrupted arms are resumed.
        prompt: as for `evaluate`, like the next two.
        limit: the number of questions to ask of each task.
        overwrite: start over where there are files of other runs.
        watch: called with the progress over all arms.

    Returns:
        One finished run per arm.

    Raises:
        UsageError: an arm's directory holds something else.
        QkeditError: an edit or a plug-in does not fit the model, or for the reasons of `evaluate`.
    """
    require_scipy()  # to compare them in the end
    if (out / RUN_FILE).exists():
        raise UsageError("holds a run by itself", where=str(out), remedy="name another --out for several arms")
    shared = Shared()
    backends = [replace(model, edits=arm.edits, plugins=arm.plugins, shared=shared) for arm in arms]
    # Before the first arm is asked, which may take hours.
    for arm, backend in zip(arms, backends, strict=True):
        check_run(backend, tasks, images, out / arm.name, prompt=prompt, limit=limit, overwrite=overwrite)
    finished = []
    for place, (arm, backend) in enumerate(zip(arms, backends, strict=True)):

        def watch_arm(done: int, total: int, place: int = place) -> None:
            watch(place * total + done, len(arms) * total)

        finished.append(
            evaluate(
                backend,
                tasks,
                images,
                out / arm.name,
                prompt=prompt,
                limit=limit,
                overwrite=overwrite,
                watch=watch_arm,
            )
        )
    return finished
