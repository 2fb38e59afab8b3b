"""Measure models from Python: the commands `score`, `compare`, `drift` and `attention`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkedit.evaluation.attention.diagnosis import AttentionDiagnosis
    from qkedit.evaluation.drift import Drift
    from qkedit.evaluation.files.records import Score
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
    similarity: str | Path | None = None,
    cache_ground_truth: str | Path | None = None,
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
        similarity: a table of similar words for AMBER, where spaCy's model is not installed.
        cache_ground_truth: a file `NAME_gt_objects.json.gz` for the objects that CHAIR finds in COCO's annotations.

    Raises:
        QkeditError: the answers cannot be scored, or are incomplete.

    Example:
        >>> for scored in qkedit.score("pope", "answers.jsonl", "./POPE"):
        ...     print(scored.split, scored.metrics["f1"])
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.scoring import score_files

    files = {"similarity": similarity, "cache_ground_truth": cache_ground_truth}
    return score_files(
        benchmark_named(benchmark).with_metrics(also),
        answers=Path(answers),
        data=Path(data),
        split=split,
        rule=rule,
        allow_missing=allow_missing,
        files={name: Path(file) for name, file in files.items() if file is not None},
    )


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
    base: str | Path | None = None,
    plugins: Plugins = (),
    edits: Sequence[str | Path] = (),
    max_new_tokens: int = 64,
    device: str = "cpu",
    dtype: str = "auto",
    **loading: Any,
) -> Drift:
    """Measure the drift of an edited model, or one with plug-ins, from its base on your own images.

    Args:
        edited: the edited model, or any model if plug-ins or edits make the difference.
        images: image files, or a directory of them.
        base: the model before: a directory, a hub id, an alias or `demo`; by default the base that the edited model's
            manifest records, or else, with plug-ins or edits, the model without them.
        plugins: the plug-ins of the edited model, as for `evaluate`.
        edits: directories of edits, applied to the loaded weights of the edited model.
        max_new_tokens: the maximum length of an answer.
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        loading: `prompt`, `base_revision`, `revision`, `trust_remote_code`, `chat_template`, and
            `device_map`, `attn_implementation` and `quantization` as for `load`.

    Raises:
        QkeditError: there is no base, there are no images, a file is not an image, or the models have different
            vocabularies.
    """
    from qkedit.evaluation.drift import drift as measure
    from qkedit.evaluation.drift import pictures_in
    from qkedit.plugins.requested import requested_settings
    from qkedit.steering.base import model_before

    pictures = pictures_in(Path(images))[0] if isinstance(images, str | Path) else [Path(image) for image in images]
    chosen = requested_settings(plugins, str(edited))
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "device": device, "dtype": dtype, **loading}
    if base is None:
        revision = settings.get("revision")
        base, recorded = model_before(str(edited), None, revision, alone=bool(chosen or edits))
        settings.setdefault("base_revision", recorded)
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
