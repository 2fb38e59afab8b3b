"""Ask models benchmarks' questions from Python: `eval`, with `--each` and `--endpoint`, and `verify --endpoint`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qkedit.errors import UsageError

if TYPE_CHECKING:
    from qkedit.evaluation.runs.arms import Arm, FinishedArms
    from qkedit.evaluation.runs.backend import Backend
    from qkedit.evaluation.runs.evaluate import Finished
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.evaluation.served_edit import ServedEdit
    from qkedit.plugins.requested import Plugins


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
    device: str = "cpu",
    dtype: str = "auto",
    batch_size: int = 8,
    prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    overwrite: bool = False,
    engine: Literal["transformers", "vllm"] = "transformers",
    engine_flags: Sequence[str] = (),
    **loading: Any,
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
        device: the device to run on, by its PyTorch name.
        dtype: the dtype of the weights; `auto` for the stored one.
        batch_size: the number of prompts per batch.
        prompt: a prompt to use instead, with `{question}` in place of the benchmark's own question.
        limit: the number of questions to ask of each split, from the first.
        max_new_tokens: the maximum length of an answer; by default the benchmark's own.
        overwrite: whether to start again if another run's files exist.
        engine: `vllm` starts vLLM's server on this machine for the run, without edits, and without `device`, `dtype`,
            `batch_size` and all of `loading` except `revision`.
        engine_flags: vLLM's own flags, such as `["--dtype", "float32"]`.
        loading: `revision`, `trust_remote_code`, `chat_template`, `device_map`, `attn_implementation` and
            `quantization` as for `load`; the run records them.

    Raises:
        UsageError: an argument has no effect with the engine.
        QkeditError: an image is missing, the model cannot answer, or a file cannot be read or written.
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.arms import BASE, Arm
    from qkedit.evaluation.runs.evaluate import evaluate as run
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.plugins.requested import requested_settings

    backend_of = _backends(model, engine, engine_flags, device, dtype, batch_size, loading)
    backend = backend_of(Arm(BASE, tuple(map(str, edits)), requested_settings(plugins, str(model))))
    asked = benchmark_named(benchmark).with_metrics(also)
    tasks = tasks_of(asked, Path(data), splits, max_new_tokens=max_new_tokens, rule=rule)
    return run(backend, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def _backends(
    model: str | Path,
    engine: str,
    engine_flags: Sequence[str],
    device: str,
    dtype: str,
    batch_size: int,
    loading: Mapping[str, Any],
) -> Callable[[Arm], Backend]:
    """Return a function from an arm to the model with its edits and plug-ins, on an engine."""
    from qkedit.api.vllm_servers import vllm_servers
    from qkedit.evaluation.runs.arms import in_one_load

    if engine == "vllm":
        usual = {"device": "cpu", "dtype": "auto", "batch_size": 8, "revision": loading.get("revision")}
        given = {"device": device, "dtype": dtype, "batch_size": batch_size, **loading}
        for name, value in given.items():
            if value != usual.get(name):
                raise UsageError("has no effect with engine='vllm'", where=name, remedy="leave it out")
        return vllm_servers(str(model), loading.get("revision"), engine_flags)
    if engine != "transformers":
        raise UsageError(f"{engine!r} is not an engine", where="engine", remedy="name transformers or vllm")
    if engine_flags:
        raise UsageError("are for engine='vllm'", where="engine_flags", remedy="leave them out")
    return in_one_load(local_model(model, device, dtype, batch_size, loading))


def local_model(model: str | Path, device: str, dtype: str, batch_size: int, loading: Mapping[str, Any]) -> LocalModel:
    """Return a model of transformers as runs ask it, without edits and plug-ins; `loading` as for `evaluate`."""
    from qkedit.evaluation.runs.local_model import LocalModel
    from qkedit.runtime.load_options import Placement

    placed = {name: loading[name] for name in vars(Placement()) if name in loading}
    return LocalModel(
        str(model),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        placement=Placement(**placed),
        **{name: value for name, value in loading.items() if name not in placed},
    )


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
    max_new_tokens: int | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    engine: Literal["transformers", "vllm"] = "transformers",
    engine_flags: Sequence[str] = (),
    **loading: Any,
) -> FinishedArms:
    """Ask a model, and the model with each edit and each plug-in alone, the same questions, and compare them.

    This is `qkedit eval --each`: the model is loaded once (on vLLM, a server is started for each arm), each arm is a
    run of its own below `out`, and interrupted arms are resumed.

    Args:
        model, benchmark, data, images: as for `evaluate`.
        out: the directory in which each arm gets a directory with its name; the model alone is `base`.
        plugins: as for `evaluate`, one arm for each; one may occur twice, with other options.
        edits: directories of edits, one arm for each.
        always: plug-ins that act in every arm, including the base.
        splits, rule, also, batch_size, prompt, limit, max_new_tokens, overwrite, device, dtype: as for `evaluate`.
        engine, engine_flags, loading: as for `evaluate`.

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
    from qkedit.evaluation.runs.tasks import tasks_of
    from qkedit.plugins.requested import requested_settings

    chosen, everywhere = (requested_settings(some, str(model), repeated=True) for some in (plugins, always))
    arms = arms_of([*map(str, edits)], chosen, everywhere)
    backend_of = _backends(model, engine, engine_flags, device, dtype, batch_size, loading)
    asked = benchmark_named(benchmark).with_metrics(also)
    tasks = tasks_of(asked, Path(data), splits, max_new_tokens=max_new_tokens, rule=rule)
    return run(backend_of, arms, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def evaluate_endpoint(
    endpoint: str | Sequence[str],
    benchmark: str,
    *,
    data: str | Path,
    images: str | Path,
    out: str | Path,
    served_name: str | None = None,
    concurrency: int | None = None,
    image_urls: str | None = None,
    splits: Sequence[str] = (),
    rule: str | None = None,
    also: Sequence[str] = (),
    prompt: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    overwrite: bool = False,
) -> Finished:
    """Let a model behind an OpenAI-compatible server answer a benchmark's questions, and score the answers.

    Args:
        endpoint: the URL of the server, or of several servers of the same model. The key is read from QKEDIT_API_KEY.
        benchmark, data, images, out, splits, rule, also, prompt, limit, max_new_tokens, overwrite: as for `evaluate`.
        served_name: the name of the model on the server, if it has several.
        concurrency: the largest number of requests in progress at each endpoint; None to measure which is fastest.
        image_urls: the server's URL of the directory of images, such as `file:///data/val2014`, instead of sending
            the images.

    Raises:
        QkeditError: as for `evaluate`; or the server cannot be reached, or refuses.
    """
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.evaluation.runs.endpoint import Endpoint, ServedImages
    from qkedit.evaluation.runs.endpoint_pool import backend_of
    from qkedit.evaluation.runs.evaluate import evaluate as run
    from qkedit.evaluation.runs.tasks import tasks_of

    served = ServedImages(Path(images), image_urls) if image_urls else None
    urls = [endpoint] if isinstance(endpoint, str) else endpoint
    backend = backend_of([Endpoint(url, served_name, concurrency, images=served) for url in urls], Path(out))
    asked = benchmark_named(benchmark).with_metrics(also)
    tasks = tasks_of(asked, Path(data), splits, max_new_tokens=max_new_tokens, rule=rule)
    return run(backend, tasks, Path(images), Path(out), prompt=prompt, limit=limit, overwrite=overwrite)


def verify_endpoint(
    directory: str | Path,
    endpoint: str,
    *,
    served_name: str | None = None,
    base: str | Path | None = None,
    revision: str | None = None,
    **loading: Any,
) -> ServedEdit:
    """Compare the log probabilities of a server with those of an edit and of its base; both are computed here.

    Args:
        directory: an output of `steer`, `apply` or `export`, in any layout.
        endpoint: the URL of the server.
        served_name: the name of the edit on the server, if it has several models.
        base, revision: as for `verify`.
        loading: `device`, `dtype` and `trust_remote_code` as for `load`, for the base.

    Returns:
        What is served: its `verdict` is `edit`, `base`, `neither` or `unclear`.

    Raises:
        QkeditError: the base is not known or cannot be loaded, or the server gives no log probabilities.
    """
    from qkedit.evaluation.runs.endpoint import Endpoint
    from qkedit.evaluation.served_edit import probe

    named = None if base is None else str(base)
    return probe(Endpoint(endpoint, served_name), directory, base=named, revision=revision, **loading)
