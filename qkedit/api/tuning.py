"""Search for the edit that helps on a model, from Python: the command `tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkedit.api.evaluating import local_model
from qkedit.demo.scenes import HELD_OUT_SEED
from qkedit.selection import Selection, selection_text
from qkedit.spectral.suppression import Channel
from qkedit.steering.steer_options import Product, Role

if TYPE_CHECKING:
    from qkedit.laboratory.tuning.result import TuneReport
    from qkedit.laboratory.tuning.sampler import SamplerName


def tune(
    model: str | Path = "demo",
    benchmark: str | None = None,
    *,
    data: str | Path | None = None,
    images: str | Path | None = None,
    splits: Sequence[str] = (),
    rule: str | None = None,
    objective: str | None = None,
    no_worse: str | None = None,
    layers: Sequence[Selection] = ("each", "0.0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1.0", "mid"),
    heads: Sequence[Selection] = ("all",),
    ks: Sequence[int] = (1, 2, 4, 8),
    energies: Sequence[float] = (),
    channels: Sequence[Channel] = ("symmetric", "full"),
    retains: Sequence[float] = (0.0, 0.5, 0.8),
    protects: Sequence[str] = ("none",),
    spares: Sequence[Role] = ("none",),
    products: Sequence[Product] = ("raw",),
    trials: int = 60,
    controls: int = 5,
    most_drift: float | None = None,
    out: str | Path | None = None,
    scenes: int = 200,
    scene_seed: int = HELD_OUT_SEED,
    world: str | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    sampler: SamplerName = "tpe",
    seed: int = 0,
    prune: bool = True,
    drift_images: int = 4,
    at_once: int = 1,
    workers: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str = "auto",
    watch: Callable[[int, int], None] | None = None,
    **loading: Any,
) -> TuneReport:
    """Search for the edit that helps on a model and images, and confirm it on images that were not used to choose.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        benchmark: the benchmark whose questions are asked; None for the scenes of the demo.
        data: the directory with the benchmark's published files, or one file of questions.
        images: the directory of the images.
        splits: the splits to ask; by default all in `data`.
        rule: as for `evaluate`.
        objective: the measure to improve, such as `hr` or `pope.adversarial.f1`; for scenes `chair_s` by default.
        no_worse: limits on how much other measures may get worse: `"MEASURE:TOLERANCE,…"` or `"none"`; by default no
            recall may fall by more than 0.02.
        layers: the alternatives, each as for `plan`; `each` stands for every single layer.
        heads: likewise; `each` stands for every single head.
        ks: the numbers of modes per head.
        energies: shares of the energy, as alternatives to numbers of modes.
        channels: the parts of the product.
        retains: the shares of each suppressed mode that stay.
        protects: the query directions to leave alone, each as for `steer`: `none`, `sink` or `sink:4`.
        spares: the roles of heads to leave alone: `none`, `induction`.
        products: the products whose modes are suppressed: `raw`, `folded`.
        trials: the number of edits to try.
        controls: the number of random controls of the best edit.
        most_drift: the largest drift in nats per token; edits with a larger one are rejected before the questions.
        out: a file for the results (JSON lines), from which an interrupted search resumes.
        scenes: the number of scenes of the demo.
        scene_seed: the seed of the scenes.
        world: their world, as for `demonstrate`.
        prompt: as for `evaluate`.
        limit: the number of questions to ask of each split, from the first.
        max_new_tokens: the maximum length of an answer; by default the benchmark's own.
        sampler: the order of the trials: `tpe`, `random` or `grid`.
        seed: the seed of the order, and of the division of a benchmark's images.
        prune: whether hopeless trials are given up after a part of the questions.
        drift_images: the number of images on which each edit's drift is measured; 0 for none.
        at_once: the number of trials per round; the edits of a round are chosen before the results of any of them.
        workers: the number of processes for a round, each with a copy of the model; it changes no result. By default
            one per GPU, or per CPU core, and at most `at_once`. With more than one, a script has to guard its own
            beginning by `if __name__ == "__main__"`.
        batch_size: the number of prompts per batch.
        device: the device of the model.
        dtype: the dtype of its weights in memory; `auto` for the stored one, for scenes float32.
        watch: called with the number of finished trials and of all.
        loading: as for `evaluate`.

    Returns:
        The trials, the best one and its confirmation; `verdict` says whether an edit is better than none, and
        `command` is the command line that makes it.

    Raises:
        QkeditError: the space does not fit the model, Optuna is not installed, or the model cannot answer.

    Example:
        >>> found = qkedit.tune("demo", layers=["2-3", "4-5"], scenes=100, trials=20, out="tune.jsonl")
        >>> found.verdict, found.command
    """
    from qkedit.demo.worlds import world_name_for
    from qkedit.errors import UsageError
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.laboratory.eval_set import SceneRange
    from qkedit.laboratory.tuning.data import BenchmarkData, TuningData
    from qkedit.laboratory.tuning.option_lists import protections
    from qkedit.laboratory.tuning.scenes import SceneData
    from qkedit.laboratory.tuning.search import SearchSettings, Watch
    from qkedit.laboratory.tuning.space import SearchSpace
    from qkedit.laboratory.tuning.tune import goal_of, tune_model

    asked: TuningData
    if benchmark is None:
        dtype = "float32" if dtype == "auto" else dtype
        asked = SceneData(SceneRange(scenes, scene_seed, world=world_name_for(str(model), world)))
    elif data is None or images is None:
        raise UsageError("a benchmark needs both", where="data and images", remedy="name its files and the images")
    else:
        tasks = tasks_of(benchmark_named(benchmark), Path(data), splits, rule=rule, max_new_tokens=max_new_tokens)
        asked = BenchmarkData(tasks, Path(images), prompt=prompt, limit=limit, seed=seed)
    space = SearchSpace(
        tuple(map(selection_text, layers)),
        tuple(selection_text(one, "heads") for one in heads),
        tuple(ks),
        tuple(energies),
        tuple(channels),
        tuple(retains),
        protections(",".join(protects), "protects"),
        tuple(spares),
        tuple(products),
    )
    return tune_model(
        local_model(model, device, dtype, batch_size, loading),
        asked,
        space,
        goal_of(objective, no_worse, asked.measures),
        SearchSettings(trials, controls, most_drift=most_drift, at_once=at_once, workers=workers),
        sampler=sampler,
        seed=seed,
        prunes=prune,
        drift_images=drift_images,
        out=None if out is None else Path(out),
        watch=None if watch is None else Watch(watch),
    )
