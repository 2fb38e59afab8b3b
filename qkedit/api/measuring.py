"""Measure models from Python: what `score`, `eval`, `compare` and `drift` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkedit.evaluation.drift import Drift
    from qkedit.evaluation.files.records import Score
    from qkedit.evaluation.runs.evaluate import Finished
    from qkedit.evaluation.statistics.comparison import RunComparison


def score(
    benchmark: str,
    answers: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    rule: str | None = None,
    allow_missing: bool = False,
) -> tuple[Score, ...]:
    """Score answers by a benchmark's own rules, one score for each split; no model is needed.

    Args:
        benchmark: its name, such as `pope`.
        answers: a file of answers, a directory of such files, or the directory of a run.
        data: the directory with the benchmark's published files, or one file of questions.
        split: the one split to score; by default all that are answered.
        rule: a parser or variant; the benchmark's default if None.
        allow_missing: leave out questions without an answer instead of refusing.

    Raises:
        QkeditError: nothing can be scored, or not all of it.

    Example:
        >>> for scored in qkedit.score("pope", "answers.jsonl", "./POPE"):
        ...     print(scored.split, scored.metrics["f1"])
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.scoring import score_files

    return score_files(
        benchmark_named(benchmark),
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
    plugins: Sequence[str] = (),
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
    """Let a model answer a benchmark's questions, and score the answers; an interrupted run goes on where it stopped.

    Args:
        model: a directory, a hub id, an alias or `demo`.
        benchmark: its name, such as `pope`.
        data: the directory with the benchmark's published files, or one file of questions.
        images: the directory of the images.
        out: the directory of the run.
        splits: those to ask; by default all that are in `data`.
        plugins: as `--plugin` takes them, such as `scr` or `dscr:blend=0.5`; none by default, whatever is attached to
            the model's directory.
        revision: of a model on the hub.
        device: where the model runs, as PyTorch names it.
        dtype: of its weights; `auto` for what is stored.
        batch_size: prompts that are answered side by side.
        prompt: what is asked instead, with `{question}` where the benchmark's own question is.
        limit: ask the first so many questions of each split.
        overwrite: begin anew where another run's files are.
        device_map: as for `load`, and so are the next two; the run records them.
        attn_implementation: how attention is computed.
        quantization: how the weights are quantised in memory.

    Raises:
        QkeditError: an image is missing, the model cannot answer, or a file cannot be read or written.
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.evaluate import evaluate as run
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.plugins.settings import parse_plugins
    from qkedit.runtime.load_options import Placement

    chosen = parse_plugins(list(plugins)) or ()
    placement = Placement(device_map, attn_implementation, quantization)
    local = LocalModel(str(model), revision, chosen, device, dtype, batch_size, placement=placement)
    tasks = tasks_of(benchmark_named(benchmark), Path(data), splits)
    return run(local, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def compare(
    first: str | Path, second: str | Path, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> RunComparison:
    """Compare two runs on the items they share, with paired tests: each difference is the second's minus the first's.

    Args:
        first: a result file, or the directory of a run.
        second: likewise.
        level: coverage of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same seed gives the same figures.

    Raises:
        QkeditError: a file is not sound, the runs share nothing, or scipy is not installed.
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
    plugins: Sequence[str] = (),
    max_new_tokens: int = 64,
    device: str = "cpu",
    dtype: str = "auto",
    **loading: Any,
) -> Drift:
    """Measure how far an edited model, or one with plug-ins, is from its base on your own images.

    Args:
        edited: the model after; the same as `base` where plug-ins alone make the difference.
        images: picture files, or a directory of them.
        base: the model before: a directory, a hub id, an alias or `demo`.
        plugins: of the edited model, as `--plugin` takes them.
        max_new_tokens: of an answer.
        device: where the models run, as PyTorch names it.
        dtype: of their weights; `auto` for what is stored.
        loading: `prompt`, `base_revision`, `revision`, `trust_remote_code`, `chat_template`, and
            `device_map`, `attn_implementation` and `quantization` as for `load`.

    Raises:
        QkeditError: there are no images, one is not a picture, or the models have different vocabularies.
    """
    from qkedit.evaluation.drift import drift as measure
    from qkedit.evaluation.drift import pictures_in
    from qkedit.plugins.settings import parse_plugins

    pictures = pictures_in(Path(images))[0] if isinstance(images, str | Path) else [Path(image) for image in images]
    chosen = parse_plugins(list(plugins)) or ()
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "device": device, "dtype": dtype, **loading}
    return measure(str(base), str(edited), pictures, plugins=chosen, **settings)
