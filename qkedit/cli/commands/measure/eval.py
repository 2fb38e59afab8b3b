"""`qkedit eval`: let a model answer benchmarks' questions, and score the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkedit.cli.delivery import deliver
from qkedit.cli.flags.engine import EngineFlags, EngineOption, refuse_flags_without_engine
from qkedit.cli.flags.evaluation import (
    AlsoOption,
    DataOption,
    ParserOption,
    QuestionsOption,
    VariantOption,
    benchmark_flag,
    check_benchmarks,
    named_tasks,
    required_data,
    warn_of_scores,
)
from qkedit.cli.flags.flag import flag, utf8
from qkedit.cli.flags.loading import LOADING_FLAGS, LoadingFlags
from qkedit.cli.flags.model import ModelFlags
from qkedit.cli.flags.output import OutOption, required_out
from qkedit.cli.flags.plugins import EditsOption, PluginsOption, chosen_plugins
from qkedit.cli.output import GO_ON, Output, command
from qkedit.cli.settings import on_command_line, refuse_without_effect
from qkedit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qkedit.evaluation.files.records import Score
    from qkedit.evaluation.runs.arms import Arm
    from qkedit.evaluation.runs.backend import Backend
    from qkedit.plugins.settings import PluginSettings

    BackendOf = Callable[[Arm], Backend]

ENDPOINT = "A model behind an endpoint"


def evaluate(
    context: typer.Context,
    *,
    model: ModelFlags,
    benchmark: Annotated[list[str] | None, benchmark_flag()] = None,
    split: Annotated[
        list[str] | None, flag("--split", help="A split of the benchmark; may be given several times. By default all.")
    ] = None,
    data: DataOption = None,
    questions: QuestionsOption = None,
    parser: ParserOption = None,
    variant: VariantOption = None,
    also: AlsoOption = None,
    images: Annotated[Path | None, flag("--images", help="The directory of the images.")] = None,
    plugin: PluginsOption = None,
    edit: EditsOption = None,
    each: Annotated[
        bool,
        flag("--each", help="Evaluate the model and each --edit and --plugin by itself, with one table."),
    ] = False,
    limit: Annotated[int | None, flag("--limit", help="Only the first questions of each split.", min=1)] = None,
    prompt: Annotated[
        str | None,
        flag(
            "--prompt",
            help="Prompt instead of the benchmark's; {question} stands for the benchmark's own.",
            callback=utf8,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        flag("--max-new-tokens", help="Largest number of tokens per answer; by default the benchmark's.", min=1),
    ] = None,
    batch_size: Annotated[int, flag("--batch-size", help="Number of questions per batch.", min=1)] = 8,
    endpoint: Annotated[
        list[str] | None,
        flag(
            "--endpoint",
            panel=ENDPOINT,
            help="URL of an OpenAI-compatible server, instead of a model; may be given several times, for servers of "
            "the same model. The key is read from QKEDIT_API_KEY.",
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None,
        flag("--endpoint-model", panel=ENDPOINT, help="Name of the model on the server, if it has several."),
    ] = None,
    concurrency: Annotated[
        int | None,
        flag(
            "--concurrency",
            panel=ENDPOINT,
            help="Largest number of requests in progress at each endpoint, or at vLLM; by default raised as long as "
            "answers come faster.",
            min=1,
        ),
    ] = None,
    image_urls: Annotated[
        str | None,
        flag(
            "--image-urls",
            panel=ENDPOINT,
            help="URL of the directory of images for the server, such as file:///data/val2014, instead of sending "
            "the images.",
            callback=utf8,
        ),
    ] = None,
    out: OutOption = None,
    overwrite: Annotated[bool, flag("--overwrite", help="Begin anew where another run's files are.")] = False,
    engine: EngineOption = "transformers",
    engine_flags: EngineFlags = None,
    loading: LoadingFlags,
) -> None:
    """Let a model answer benchmarks' questions, and score the answers.

    Answers are made by greedy search and written as they come: the same command
    again resumes the run. OUT/result.json holds scores and settings.
    With --each, each edit and plug-in is a run of its own below OUT, compared with
    the model itself.

    Example: qkedit eval ./edited --benchmark pope --data ./POPE --images ./val2014 --out ./pope-edited
    """
    with command(context, loading.architectures) as output:
        from rich.console import Group

        from qkedit.cli.commands.measure.eval_arms import run_each
        from qkedit.cli.progress import counting_bar
        from qkedit.evaluation.runs.arms import BASE, Arm
        from qkedit.evaluation.runs.endpoint import Endpoint, ServedImages
        from qkedit.evaluation.runs.endpoint_pool import backend_of as pool_of
        from qkedit.evaluation.runs.evaluate import evaluate as run

        check_benchmarks(benchmark or ())
        target = required_out(out)
        if images is None:
            raise UsageError("no directory of images is given", where="--images", remedy="name their directory")
        backend_of: BackendOf
        edits = tuple(str(place) for place in edit or ())
        plugins: tuple[PluginSettings, ...] = ()
        if endpoint:
            if on_command_line(context, "engine"):
                raise UsageError("an endpoint has its own engine", where="--engine", remedy="leave it out")
            refuse_flags_without_engine(engine_flags)
            _refuse_with_endpoint(model.argument or model.model, plugin, edits, each=each)
            served = ServedImages(images, image_urls) if image_urls else None
            servers = [Endpoint(url, endpoint_model, concurrency, images=served) for url in endpoint]
            backend_of = _always(pool_of(servers, target))
        else:
            name = model.name(context)
            plugins = chosen_plugins(plugin, name, repeated=each)
            if engine == "vllm":
                backend_of = _on_vllm(context, name, model.revision, engine_flags, concurrency, output)
            else:
                refuse_flags_without_engine(engine_flags)
                backend_of = _on_transformers(context, name, model.revision, loading, batch_size)
        tasks = named_tasks(
            benchmark or (),
            split or (),
            required_data(data, questions),
            max_new_tokens,
            also=also or (),
            parser=parser,
            variant=variant,
        )
        output.after_interruption = f"{GO_ON}; the finished answers are kept"
        if each:
            run_each(
                output,
                backend_of,
                tasks,
                images,
                target,
                edits=edits,
                plugins=plugins,
                plugins_named=bool(plugin),
                prompt=prompt,
                limit=limit,
                overwrite=overwrite,
            )
            return
        with counting_bar(output, "answers") as watch:
            backend = backend_of(Arm(BASE, edits, plugins))
            finished = run(
                backend, tasks, images, target, prompt=prompt, limit=limit, overwrite=overwrite, watch=watch
            )
        for sentence in finished.warnings:
            output.warn(sentence)
        warn_of_scores(output, finished.scores)
        fields = {"out": str(target), "asked": finished.asked, **finished.as_dict()}
        deliver(output, fields, Group(*_tables(finished.scores)), {}, done=[finished.file])


def _refuse_with_endpoint(
    model: str | None, plugins: Sequence[str] | None, edits: Sequence[str], *, each: bool
) -> None:
    """Refuse flags of a model in this process. Raises UsageError for the first that is given."""
    if each:
        raise UsageError("an endpoint is one arm", where="--each", remedy="evaluate each served model by itself")
    if edits:
        raise UsageError("an endpoint has its own weights", where="--edit", remedy="serve the edited model")
    if model is not None:
        raise UsageError("a model is named as well", where="--endpoint", remedy="name one of them")
    if plugins:
        raise UsageError("an endpoint has its own plug-ins", where="--plugin", remedy="name them where it is served")


def _always(backend: Backend) -> BackendOf:
    return lambda arm: backend


def _on_vllm(
    context: typer.Context,
    name: str,
    revision: str | None,
    engine_flags: Sequence[str] | None,
    concurrency: int | None,
    output: Output,
) -> BackendOf:
    """Return the function that starts a server of vLLM per arm. Raises UsageError for flags of transformers."""
    from qkedit.api.vllm_servers import vllm_servers

    refuse_without_effect(context, "with --engine vllm", "batch_size", "endpoint_model", "image_urls", *LOADING_FLAGS)
    return vllm_servers(name, revision, engine_flags or (), concurrency, output.progress)


def _on_transformers(
    context: typer.Context, name: str, revision: str | None, loading: LoadingFlags, batch_size: int
) -> BackendOf:
    """Return the function that asks one loaded model for every arm."""
    from qkedit.evaluation.runs.arms import in_one_load
    from qkedit.evaluation.runs.local_model import LocalModel

    local = LocalModel(
        name,
        revision,
        (),
        loading.chosen_device(),
        loading.dtype,
        batch_size,
        loading.trust_remote_code,
        loading.chat_template,
        loading.placement(context),
    )
    return in_one_load(local)


def _tables(scores: Sequence[Score]) -> Iterator[RenderableType]:
    from qkedit.evaluation.benchmarks.registry import benchmark_named
    from qkedit.report.runs.scores import score_tables

    for number, (name, group) in enumerate(groupby(scores, key=lambda score: score.benchmark)):
        if number:
            yield ""
        yield from score_tables(benchmark_named(name).title, list(group))
