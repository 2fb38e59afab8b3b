"""Experiments on synthetic scenes from Python: the commands `demo` and `sweep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qkedit.demo.scenes import HELD_OUT_SEED
from qkedit.selection import Selection, selection_text
from qkedit.spectral.sink import NONE, protected_directions
from qkedit.spectral.suppression import Channel, Control, Suppression
from qkedit.steering.steer_options import Product, Role

if TYPE_CHECKING:
    from qkedit.laboratory.demonstration import Demonstration
    from qkedit.laboratory.sweep import SweepReport


def demonstrate(
    model: str | Path = "demo",
    *,
    layers: Selection = "mid",
    heads: Selection = "all",
    k: int = 4,
    energy: float | None = None,
    retain: float = 0.0,
    channel: Channel = "full",
    protect: str = NONE,
    spare: Role = "none",
    product: Product = "raw",
    scenes: int = 500,
    scene_seed: int = HELD_OUT_SEED,
    world: str | None = None,
    seeds: int = 5,
    all_arms: bool = False,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    workers: int = 1,
    watch: Callable[[int, int], object] | None = None,
) -> Demonstration:
    """Measure the effect of steering, SCR and DSCR on synthetic scenes, compared with random controls.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        layers, heads, k, energy, retain, channel, protect: as for `steer`.
        spare, product: as for `edit`.
        scenes: the number of scenes.
        scene_seed: the seed of the scenes.
        world: their world, `small` or `crowded`; by default `small` for `demo-small`, else `crowded`.
        seeds: the number of random controls per edit.
        all_arms: also run norm-matched controls, and the plug-ins on the edited model.
        revision: branch, tag or commit of a model on the hub.
        device: the device of the model.
        dtype: the dtype of its weights in memory.
        workers: the number of processes, each with a copy of the model. With more than one, a script has to guard its
            own beginning by `if __name__ == "__main__"`.
        watch: called with the number of finished runs and of all.

    Raises:
        QkeditError: the edit or a plug-in does not fit the model.

    Example:
        >>> found = qkedit.demonstrate(layers=range(2, 6), scenes=100)
        >>> {row.name: row.figures["chair_s"].value for row in found.rows}
    """
    from qkedit.demo.worlds import world_name_for
    from qkedit.laboratory import demonstration
    from qkedit.laboratory.arms import demonstration_arms
    from qkedit.laboratory.eval_set import SceneRange
    from qkedit.laboratory.processes import end_import_of_script
    from qkedit.laboratory.worker import ModelSpec
    from qkedit.steering.steer_options import edit_options

    end_import_of_script(workers)
    suppression = Suppression(k, energy, retain, channel)
    options = edit_options(layers, heads, suppression, "cpu", protect=protect, spare=spare, product=product)
    return demonstration.demonstrate(
        ModelSpec(str(model), revision, dtype, device),
        demonstration_arms(options, seeds, all_arms),
        SceneRange(scenes, scene_seed, world=world_name_for(str(model), world)),
        workers,
        watch=watch,
    )


def sweep(
    model: str | Path = "demo",
    *,
    layers: Sequence[Selection] = ("0.0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1.0"),
    ks: Sequence[int] = (1, 2, 4, 8),
    channels: Sequence[Channel] = ("symmetric", "full"),
    retains: Sequence[float] = (0.0,),
    protect: str = NONE,
    spare: Role = "none",
    product: Product = "raw",
    control: Control = "index",
    objective: str = "chair_s",
    no_worse: str = "recall:0.02",
    out: str | Path | None = None,
    scenes: int = 500,
    scene_seed: int = HELD_OUT_SEED,
    world: str | None = None,
    seeds: int = 5,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    workers: int = 1,
    watch: Callable[[int, int], object] | None = None,
) -> SweepReport:
    """Try a grid of edits on synthetic scenes, each against random controls, and confirm the best on other scenes.

    Args:
        model: as for `demonstrate`.
        layers: the alternatives, each as for `plan`.
        ks: the numbers of modes.
        channels: the parts of the product.
        retains: the shares of each suppressed mode that stay.
        protect: as for `plan`, in every edit.
        spare, product: as for `edit`, in every edit.
        control: the kind of the random controls, `index` or `norm`.
        objective: the measure to improve.
        no_worse: limits on how much other measures may get worse: `"MEASURE:TOLERANCE,…"` or `"none"`.
        out: a file for the results (JSON lines), from which an interrupted sweep resumes.
        scenes: the number of scenes, half of them for the choice.
        scene_seed: as for `demonstrate`.
        world: as for `demonstrate`.
        seeds: as for `demonstrate`.
        revision: as for `demonstrate`.
        device: as for `demonstrate`.
        dtype: as for `demonstrate`.
        workers: as for `demonstrate`.
        watch: as for `demonstrate`.

    Raises:
        QkeditError: an edit does not fit the model, options contradict each other, or the file cannot be written.

    Example:
        >>> found = qkedit.sweep(layers=["2-3", "4-5"], ks=[2, 4], scenes=100, out="sweep.jsonl")
        >>> found.winner, found.confirmation
    """
    from contextlib import nullcontext

    from qkedit.demo.worlds import world_name_for
    from qkedit.laboratory.eval_set import SceneRange
    from qkedit.laboratory.processes import end_import_of_script
    from qkedit.laboratory.results_file import ResultsFile
    from qkedit.laboratory.sweep import run_sweep
    from qkedit.laboratory.sweep_setup import prepare
    from qkedit.laboratory.tuning.goal import guards
    from qkedit.laboratory.worker import ModelSpec

    end_import_of_script(workers)
    model_spec = ModelSpec(str(model), revision, dtype, device)
    settings = prepare(
        model_spec,
        layers=tuple(map(selection_text, layers)),
        ks=tuple(ks),
        channels=tuple(channels),
        retains=tuple(retains),
        control=control,
        seeds=seeds,
        objective=objective,
        guards=guards(no_worse),
        scenes=SceneRange(scenes, scene_seed, world=world_name_for(str(model), world)),
        protect=protected_directions(protect),
        spare=spare,
        product=product,
    )
    with nullcontext() if out is None else ResultsFile(Path(out), settings.as_dict()) as file:
        return run_sweep(model_spec, settings, file, workers, watch)
