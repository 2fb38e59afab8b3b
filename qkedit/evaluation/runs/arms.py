"""Run several arms over the same questions: the model alone, and with each edit or plug-in.

    OUT/base/, OUT/delta-a/, OUT/scr/     one run each, as `evaluate` writes and resumes it

Each arm's directory is the same run that `evaluate` would make of that arm alone: it can be resumed, compared and
gated separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from qkedit.errors import UsageError
from qkedit.evaluation.answer_times import times_of
from qkedit.evaluation.files.answer_files import read_answers
from qkedit.evaluation.files.result_files import ScoredRun, read_scores
from qkedit.evaluation.runs.backend import Backend
from qkedit.evaluation.runs.evaluate import Finished, RunOptions, Watch, check_run, evaluate
from qkedit.evaluation.runs.local_model import LocalModel, Shared
from qkedit.evaluation.runs.run_files import ANSWERS, RUN_FILE
from qkedit.evaluation.runs.tasks import Task
from qkedit.evaluation.statistics.arms import ArmsComparison, compare_with_base
from qkedit.evaluation.statistics.intervals import require_scipy
from qkedit.plugins.settings import PluginSettings

BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: its name, which is also that of its directory.
        edits: directories of edits that are put into the loaded weights.
        plugins: the plug-ins of the arm.
    """

    name: str
    edits: tuple[str, ...] = ()
    plugins: tuple[PluginSettings, ...] = ()


@dataclass(frozen=True)
class FinishedArms:
    """The finished runs of several arms.

    Attributes:
        out: the directory of the runs; each has the name of its arm.
        arms: the arms, the base first.
        runs: the run of each arm, by its name.
        against_base: each arm compared with the base, by every metric of the benchmarks and by the time of an answer.
    """

    out: Path
    arms: tuple[Arm, ...]
    runs: Mapping[str, Finished]
    against_base: ArmsComparison

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that a reader needs before trusting the figures."""
        of_runs = (f"{name}: {sentence}" for name, run in self.runs.items() for sentence in run.warnings)
        return (*of_runs, *self.against_base.warnings)

    def as_dict(self) -> dict[str, Any]:
        """Return the runs and comparisons as `qkedit eval --each --json` prints them."""
        return {
            "out": str(self.out),
            "arms": [
                {
                    "name": arm.name,
                    "out": str(self.out / arm.name),
                    "edits": list(arm.edits),
                    "plugins": [plugin.as_dict() for plugin in arm.plugins],
                    "asked": self.runs[arm.name].asked,
                    **self.runs[arm.name].as_dict(),
                }
                for arm in self.arms
            ],
            "against_base": self.against_base.as_dict(),
        }


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
        raise UsageError("there is only one arm", where="--each", remedy="name an --edit or a --plugin")
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


def in_one_load(model: LocalModel) -> Callable[[Arm], LocalModel]:
    """Return a function from an arm to its backend; all arms share a model of transformers, loaded at most once."""
    shared = Shared()
    return lambda arm: replace(model, edits=arm.edits, plugins=arm.plugins, shared=shared)


def evaluate_arms(
    backend_of: Callable[[Arm], Backend],
    arms: Sequence[Arm],
    tasks: Sequence[Task],
    images: Path,
    out: Path,
    *,
    watch: Watch = lambda done, total: None,
    **options: Unpack[RunOptions],
) -> FinishedArms:
    """Ask all arms the same questions, in turn, and compare their runs.

    Args:
        backend_of: returns the backend of an arm, such as `in_one_load`; none begins a session if all questions are
            answered.
        arms: the arms, the base first.
        tasks: the questions.
        images: the directory of the images.
        out: the directory of the runs, with one directory per arm; interrupted arms are resumed.
        watch: called with the progress over all arms.
        options: `prompt`, `limit` and `overwrite` as for `evaluate`.

    Raises:
        UsageError: an arm's directory holds something else.
        QkeditError: an edit or a plug-in does not fit the model, or `evaluate` raises it.
    """
    require_scipy()  # for the comparison at the end
    if (out / RUN_FILE).exists():
        raise UsageError("holds a single run", where=str(out), remedy="name another --out for several arms")
    backends = [backend_of(arm) for arm in arms]
    # Checked before the first arm runs, which may take hours.
    for arm, backend in zip(arms, backends, strict=True):
        check_run(backend, tasks, images, out / arm.name, **options)
    finished: dict[str, Finished] = {}
    for place, (arm, backend) in enumerate(zip(arms, backends, strict=True)):

        def watch_arm(done: int, total: int, place: int = place) -> None:
            watch(place * total + done, len(arms) * total)

        finished[arm.name] = evaluate(backend, tasks, images, out / arm.name, watch=watch_arm, **options)
    compared = compare_with_base(arms[0].name, read_arms(out, [arm.name for arm in arms], [t.name for t in tasks]))
    return FinishedArms(out, tuple(arms), finished, compared)


def read_arms(out: Path, names: Sequence[str], tasks: Sequence[str]) -> dict[str, ScoredRun]:
    """Return the scores of finished arms, and after them the times of their answers to each task.

    Args:
        out: the directory of the runs.
        names: the names of the arms.
        tasks: the names of the tasks.

    Raises:
        QkeditError: a file cannot be read.
    """
    runs = {name: read_scores(out / name) for name in names}
    for task in tasks:
        times = times_of({name: read_answers(out / name / ANSWERS / f"{task}.jsonl") for name in names}, task)
        for name, score in (times or {}).items():
            runs[name] = replace(runs[name], scores=(*runs[name].scores, score))
    return runs
