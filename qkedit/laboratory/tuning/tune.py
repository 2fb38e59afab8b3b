"""Tune: everything that can be refused is refused before the model is loaded; then the search runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from qkedit.checkpoint.architecture.layers import attention_stack
from qkedit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qkedit.checkpoint.resolve import resolve
from qkedit.errors import UsageError
from qkedit.evaluation.metric import Better
from qkedit.evaluation.runs.backend import versions
from qkedit.evaluation.runs.local_model import LocalModel
from qkedit.evaluation.statistics.guard import Guard
from qkedit.laboratory.measures import MEASURES, Measure
from qkedit.laboratory.processes import end_import_of_script
from qkedit.laboratory.tuning.data import TuningData
from qkedit.laboratory.tuning.goal import Goal, guards, measure_at
from qkedit.laboratory.tuning.result import TuneReport
from qkedit.laboratory.tuning.sampler import Sampler, SamplerName
from qkedit.laboratory.tuning.search import Search, SearchSettings, Watch, default_edit
from qkedit.laboratory.tuning.space import MILDEST_FIRST, SearchSpace
from qkedit.laboratory.tuning.trial_runner import TrialRunner, TrialsFile
from qkedit.laboratory.tuning.worker_devices import worker_devices
from qkedit.selection import describe, select_layers
from qkedit.steering.plan import make_plan

# The guard where none is named: a model that says less hallucinates less.
RECALL, RECALL_TOLERANCE = "recall", 0.02
SCENES_OBJECTIVE = "chair_s"


def tune_model(
    model: LocalModel,
    data: TuningData,
    space: SearchSpace,
    goal: Goal,
    settings: SearchSettings,
    *,
    sampler: SamplerName = "tpe",
    seed: int = 0,
    prunes: bool = True,
    drift_images: int = 4,
    out: Path | None = None,
    watch: Watch | None = None,
) -> TuneReport:
    """Search the space for the edit that improves the goal on this model, and confirm it on other questions.

    Args:
        model: the model, without edits.
        data: the questions.
        space: the edits to search; `each` and fractions of the layers are written out for the model.
        goal: the objective and the guards, see `goal_of`.
        settings: the number of trials, of those at once and of workers, and the controls.
        sampler: the order of the trials.
        seed: the seed of the order.
        prunes: whether hopeless trials are given up after a part of the questions.
        drift_images: the number of images on which each edit's drift is measured; 0 for none.
        out: the journal, from which an interrupted search is resumed; None keeps results only in memory.
        watch: what a caller is told.

    Raises:
        UsageError: the space does not fit the model, several workers cannot hold it, or the journal is that of another
            search.
        QkeditError: Optuna is needed and not installed, the model cannot be read or answer, or the journal cannot be
            written.
    """
    if settings.most_drift is not None and not drift_images:
        raise UsageError("no drift is measured", where="--most-drift", remedy="give --drift-images, such as 4")
    devices = worker_devices(model.device, model.placement.device_map, settings.at_once, settings.workers)
    end_import_of_script(len(devices))
    checkpoint = open_checkpoint(resolve(model.name, model.revision))
    stack = attention_stack(checkpoint)
    fitted = space.fitted(stack.layers, stack.layer_count)
    _refuse_unfitting(checkpoint, fitted, settings)
    available = sorted(layer.index for layer in stack.layers)
    default = default_edit(describe(select_layers("mid", stack.layer_count, available)))
    # The default edit's cheaper sibling comes first.
    order = Sampler(fitted, sampler, seed, (replace(default, channel=MILDEST_FIRST[0]), default), prunes)
    # Edits are computed where the model is; one that is spread over devices is edited from main memory.
    device = model.device if model.placement.device_map is None else "cpu"
    identity = {
        **model.identity(),
        "data": data.identity(),
        "space": asdict(fitted),
        "sampler": sampler,
        "seed": seed,
        "prunes": prunes,
        "drift_images": drift_images,
        "edits_computed_on": device.partition(":")[0],
        "optuna": versions("optuna")["optuna"] if sampler == "tpe" or prunes else None,
        # Proposals depend on the size of a round, and not on the number of workers.
        **({"at_once": settings.at_once} if settings.at_once > 1 else {}),
    }
    with (
        TrialsFile(out, identity) if out is not None else nullcontext() as file,
        TrialRunner(
            model,
            data,
            file,
            device=device,
            drift_images=drift_images,
            devices=devices,
            single_thread=settings.at_once > 1,
        ) as runner,
    ):
        return Search(runner, fitted, order, goal, settings, default, watch or Watch()).run()


def _refuse_unfitting(checkpoint: Checkpoint, space: SearchSpace, settings: SearchSettings) -> None:
    """Refuse an edit that does not fit the model, or that no control can match. Raises UsageError."""
    seen = set()
    for edit in space.candidates():
        if (shape := (edit.layers, edit.modes, edit.channel, edit.protect)) in seen:
            continue
        seen.add(shape)
        make_plan(checkpoint, edit.options())
        for control in edit.controls(settings.control, min(1, settings.controls)):
            assert control.steer is not None
            try:
                make_plan(checkpoint, control.steer)
            except UsageError as error:
                # The other kind of control, which the plan advises, may not exist for other edits of the space.
                remedy = "take at most half of a head's modes with --k, or --controls 0"
                raise UsageError(error.what, where=f"{error.where}, {edit.modes}", remedy=remedy) from None


def goal_of(objective: str | None, no_worse: str | None, measures: Mapping[str, Measure]) -> Goal:
    """Return the goal that names describe.

    Args:
        objective: the measure to improve; None for the captions of scenes, CHAIR_s.
        no_worse: `recall:0.02,f1:0.01` or `none`; None for every recall but the objective: at most 0.02 worse.
        measures: the measures there are.

    Raises:
        UsageError: a measure is unknown, ambiguous or has no better direction, or none is named.
    """
    if objective is None and measures is not MEASURES:
        named = [name for name, measure in measures.items() if measure.better is not Better.NEITHER]
        raise UsageError("no objective is named", where="--objective", remedy=f"choose among {', '.join(named)}")
    chosen = measure_at(objective or SCENES_OBJECTIVE, measures, "--objective")
    if no_worse is not None:
        return Goal(chosen, guards(no_worse, measures), measures)
    kept = [
        Guard(name, RECALL_TOLERANCE)
        for name, measure in measures.items()
        if measure.metric == RECALL and measure.is_share and measure is not chosen
    ]
    return Goal(chosen, tuple(kept), measures)
