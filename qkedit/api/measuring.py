"""Measure models from Python: the commands `score`, `eval`, `compare`, `drift` and `attention`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis
    from qkedit.evaluation.drift import Drift
    from qkedit.evaluation.files.records import Score
    from qkedit.evaluation.runs.arms import FinishedArms
    from qkedit.evaluation.runs.evaluate import Finished
    from qkedit.evaluation.statistics.comparison import RunComparison
    from qkedit.plugins.requested import Plugins


def score(
    benchmark: str,
    answers: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    rule: str | None = None,
    allow_missing: bool = False,
    also: Sequence[str] = (),
) -> tuple[Score, ...]:
    """Score answers by a benchmark's own rules, without a model; return one score per split.

    Args:
        benchmark: the name of the benchmark, such as `pope`.
        answers: a file of answers, a directory of such files, or the directory of a run.
        data: the directory with the benchmark's published files, or one file of questions.
        split: the only split to score; by default all splits with answers.
        rule: a parser or variant; None for the benchmark's default.
        allow_missing: whether to leave out questions without an answer instead of refusing.
        also: metrics that take long: `meteor` and `spice` of `coco-caption`.

    Raises:
        QkeditError: the answers cannot be scored, or are incomplete.

    Example:
        >>> for scored in qkedit.score("pope", "answers.jsonl", "./POPE"):
        ...     print(scored.split, scored.metrics["f1"])
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.scoring import score_files

    return score_files(
        benchmark_named(benchmark).with_metrics(also),
        answers=Path(answers),
        data=Path(data),
        split=split,
        rule=rule,
        allow_missing=allow_missing,
    )


def evaluate(
    model: str | Path,
    benchmark: str,
    *,
    data: str | Path,
    images: str | Path,
    out: str | Path,
    splits: Sequence[str] = (),
    rule: str | None = None,
    also: Sequence[str] = (),
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    batch_size: int = 8,
    prompt: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> Finished:
    """Let a model answer a benchmark's questions, and score the answers; an interrupted run is resumed.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        benchmark: the name of the benchmark, such as `pope`.
        data: the directory with the benchmark's published files, or one file of questions.
        images: the directory of the images.
        out: the directory of the run.
        splits: the splits to run; by default all in `data`.
        rule, also: as for `score`.
        plugins: plug-ins, by text in the form of `--plugin` such as `"dscr:blend=0.5"`, or such as `qkedit.SCR()`; by
            default none, even if some are attached to the model's directory. For those named by text, settings that
            were published for the model are the defaults.
        edits: directories of edits of the model (deltas, adapters, full outputs), applied to the loaded weights.
        revision: branch, tag or commit of a model on the hub.
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        batch_size: the number of prompts per batch.
        prompt: a prompt to use instead, with `{question}` in place of the benchmark's own question.
        limit: the number of questions to ask of each split, from the first.
        overwrite: whether to start again if another run's files exist.
        device_map: as for `load`, and so are the next two; the run records them.
        attn_implementation: the implementation of attention.
        quantization: the quantisation of the weights in memory.

    Raises:
        QkeditError: an image is missing, the model cannot answer, or a file cannot be read or written.
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.evaluate import evaluate as run
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.plugins.requested import requested_settings
    from qkedit.runtime.load_options import Placement

    chosen = requested_settings(plugins, str(model))
    placement = Placement(device_map, attn_implementation, quantization)
    places = tuple(map(str, edits))
    local = LocalModel(str(model), revision, chosen, device, dtype, batch_size, placement=placement, edits=places)
    tasks = tasks_of(benchmark_named(benchmark).with_metrics(also), Path(data), splits, rule=rule)
    return run(local, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def evaluate_arms(
    model: str | Path,
    benchmark: str,
    *,
    data: str | Path,
    images: str | Path,
    out: str | Path,
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    always: Plugins = (),
    splits: Sequence[str] = (),
    rule: str | None = None,
    also: Sequence[str] = (),
    batch_size: int = 8,
    prompt: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    **loading: Any,
) -> FinishedArms:
    """Ask a model, and the model with each edit and each plug-in alone, the same questions, and compare them.

    This is `qkedit eval --each`: the model is loaded once, each arm is a run of its own below `out`, and interrupted
    arms are resumed.

    Args:
        model, benchmark, data, images: as for `evaluate`.
        out: the directory in which each arm gets a directory with its name; the model alone is `base`.
        plugins: as for `evaluate`, one arm for each; one may occur twice, with other options.
        edits: directories of edits, one arm for each.
        always: plug-ins that act in every arm, including the base.
        splits, rule, also, batch_size, prompt, limit, overwrite, device, dtype: as for `evaluate`.
        loading: `revision`, `device_map`, `attn_implementation` and `quantization` as for `evaluate`.

    Returns:
        `runs` holds each arm's scores, `against_base.arms` each arm's differences from the base with intervals and
        tests. After the benchmark's splits come `time.<split>`: wall seconds per answer, with batches resampled.

    Raises:
        UsageError: there is neither an edit nor a plug-in, or an arm's directory holds something else.
        QkeditError: an edit or a plug-in does not fit the model, or for the reasons of `evaluate`.

    Example:
        >>> arms = qkedit.evaluate_arms("demo", "pope", data=".", images="images", out="arms", plugins=["vcd", "deco"])
        >>> for metric in arms.against_base.arms["vcd"].splits[0].metrics:
        ...     print(metric.difference.metric, metric.difference.value, metric.difference.p)
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.arms import arms_of
    from qkedit.evaluation.runs.arms import evaluate_arms as run
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.plugins.requested import requested_settings
    from qkedit.runtime.load_options import Placement

    chosen, everywhere = (requested_settings(some, str(model), repeated=True) for some in (plugins, always))
    arms = arms_of([*map(str, edits)], chosen, everywhere)
    revision = loading.pop("revision", None)
    local = LocalModel(str(model), revision, (), device, dtype, batch_size, placement=Placement(**loading))
    tasks = tasks_of(benchmark_named(benchmark).with_metrics(also), Path(data), splits, rule=rule)
    return run(local, arms, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def compare(
    first: str | Path, second: str | Path, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> RunComparison:
    """Compare two runs on their common items with paired tests; each difference is the second minus the first.

    Args:
        first: a result file, or the directory of a run.
        second: the same.
        level: the coverage of the intervals.
        resamples: the number of resamples of the bootstrap.
        seed: the seed of the bootstrap; the same seed gives the same figures.

    Raises:
        QkeditError: a file is invalid, the runs have no common items, or scipy is not installed.
    """
    from qkedit.evaluation.files.result_files import read_scores
    from qkedit.evaluation.statistics.comparison import compare as compare_runs

    runs = [read_scores(Path(file)) for file in (first, second)]
    return compare_runs(*runs, level=level, resamples=resamples, seed=seed)


def drift(
    edited: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    base: str | Path,
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    max_new_tokens: int = 64,
    device: str = "cpu",
    dtype: str = "auto",
    **loading: Any,
) -> Drift:
    """Measure the drift of an edited model, or one with plug-ins, from its base on your own images.

    Args:
        edited: the edited model; the same as `base` if only plug-ins or edits make the difference.
        images: image files, or a directory of them.
        base: the base model: a directory, a hub id, an alias or `demo`.
        plugins: the plug-ins of the edited model, as for `evaluate`.
        edits: directories of edits, applied to the loaded weights of the edited model.
        max_new_tokens: the maximum length of an answer.
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        loading: `prompt`, `base_revision`, `revision`, `trust_remote_code`, `chat_template`, and
            `device_map`, `attn_implementation` and `quantization` as for `load`.

    Raises:
        QkeditError: there are no images, a file is not an image, or the models have different vocabularies.
    """
    from qkedit.evaluation.drift import drift as measure
    from qkedit.evaluation.drift import pictures_in
    from qkedit.plugins.requested import requested_settings

    pictures = pictures_in(Path(images))[0] if isinstance(images, str | Path) else [Path(image) for image in images]
    chosen = requested_settings(plugins, str(edited))
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "device": device, "dtype": dtype, **loading}
    return measure(str(base), str(edited), pictures, plugins=chosen, edits=[*map(str, edits)], **settings)


def attention(
    model: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    scenes: int | None = None,
    world: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    variant: str = "official",
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    max_new_tokens: int = 128,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str = "auto",
    **loading: Any,
) -> AttentionDiagnosis:
    """Measure where the tokens of answers attend: at the image or elsewhere, and at hallucinated mentions.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        images: image files, or a directory of them; one answer is generated for each.
        scenes: instead, the number of scenes of the miniature world, whose objects are known.
        world: the world of the scenes, as for `demonstrate`.
        data: CHAIR's ground truth, as for `score`; images are found in it by the names of their files.
        split: the part of the ground truth; by default all of it.
        variant: CHAIR's variant, `official` or `wordnet`.
        plugins: as for `evaluate`.
        edits: directories of edits, applied to the loaded weights.
        max_new_tokens: the maximum length of an answer.
        batch_size: the number of prompts per batch.
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        loading: `prompt`, `revision`, `trust_remote_code`, `chat_template`, and `device_map`, `attn_implementation`
            and `quantization` as for `load`.

    Raises:
        QkeditError: there are no images, a file is not an image, or the ground truth knows none of them.

    Example:
        >>> found = qkedit.attention("demo", scenes=20)
        >>> [layer.tokens.image for layer in found.layers], found.auroc
    """
    from qkedit.demo.scenes import HELD_OUT_SEED, make_scenes
    from qkedit.demo.worlds import world_name_for, world_named
    from qkedit.errors import UsageError
    from qkedit.evaluation.attention.measure import diagnose
    from qkedit.evaluation.attention.prompt_images import of_files, of_scenes
    from qkedit.evaluation.drift import pictures_in
    from qkedit.plugins.requested import requested_settings

    if (images is None) == (scenes is None):
        raise UsageError("give either images or a number of scenes", where="images")
    if scenes is not None:
        asked = of_scenes(make_scenes(scenes, HELD_OUT_SEED, world=world_named(world_name_for(str(model), world))))
    else:
        files = pictures_in(Path(images))[0] if isinstance(images, str | Path) else [Path(one) for one in images or ()]
        asked = of_files([[file] for file in files], None if data is None else Path(data), split, variant)
    return diagnose(
        str(model),
        asked,
        plugins=requested_settings(plugins, str(model)),
        edits=[*map(str, edits)],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        **loading,
    )
